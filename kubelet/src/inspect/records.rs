//! What the kubelet has written down of its pods, and what of that is meant by a name or id.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use hpk_shim_client::{Shim, TaskStatus};

use crate::pod::record::{Instance, PodRecord};
use crate::text;

/// All pods of the node, the newest first.
#[derive(Debug)]
pub struct Records(pub Vec<PodRecord>);

/// One run of a container.
#[derive(Debug, Clone)]
pub struct Found {
    pub pod: PodRecord,
    /// The container's.
    pub name: String,
    pub run: Instance,
}

impl Records {
    /// Reads those in the kubelet's `run_dir`; tells of each that can't be understood.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let folder = run_dir.join("pods");
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "no {}: is this a bubble's shell (apptainer shell instance://bubble1)?",
                folder.display()
            ),
            other => other.with_context(|| format!("list {}", folder.display()))?,
        };
        let mut pods = Vec::new();
        for entry in entries {
            let path = entry
                .with_context(|| format!("list {}", folder.display()))?
                .path();
            match PodRecord::load(&path) {
                // One that is gone meanwhile has no file.
                Ok(found) => pods.extend(found),
                Err(error) => eprintln!("hpk-kubelet: {}", text::chain(&error)),
            }
        }
        pods.sort_by(|a, b| b.start_time.cmp(&a.start_time).then(a.uid.cmp(&b.uid)));
        Ok(Self(pods))
    }

    /// The last run of each container, with its pod.
    pub fn containers(&self) -> impl Iterator<Item = Found> {
        self.0.iter().flat_map(|pod| {
            let runs = pod.containers.iter();
            runs.filter_map(|(name, container)| {
                Some(Found {
                    pod: pod.clone(),
                    name: name.clone(),
                    run: container.current.clone()?,
                })
            })
        })
    }

    /// The pods of which `wanted` is the name, NAMESPACE/NAME, or the beginning of uid or sandbox's id.
    pub fn pods(&self, wanted: &str) -> Vec<&PodRecord> {
        let is_meant = |pod: &&PodRecord| {
            let sandbox = pod.sandbox.as_ref();
            pod.name == wanted
                || format!("{}/{}", pod.namespace, pod.name) == wanted
                || begins(&pod.uid, wanted)
                || sandbox.is_some_and(|sandbox| begins(&sandbox.id, wanted))
        };
        self.0.iter().filter(is_meant).collect()
    }

    /// The container of which `wanted` is the name, [NAMESPACE/]POD/NAME, or the beginning of the id.
    pub fn container(&self, wanted: &str) -> Result<Found> {
        let is_meant = |found: &Found| {
            let Found { pod, name, run } = found;
            *name == wanted
                || format!("{}/{name}", pod.name) == wanted
                || format!("{}/{}/{name}", pod.namespace, pod.name) == wanted
                || begins(&run.id, wanted)
        };
        let mut all: Vec<Found> = self.containers().filter(is_meant).collect();
        match (all.pop(), all.is_empty()) {
            (Some(found), true) => Ok(found),
            (Some(found), false) => {
                all.push(found);
                let named =
                    |it: &Found| format!("{}/{}/{}", it.pod.namespace, it.pod.name, it.name);
                let named: Vec<String> = all.iter().map(named).collect();
                bail!(
                    "{wanted:?} is more than one container: {}",
                    named.join(", ")
                )
            }
            (None, _) => {
                bail!("no container {wanted:?} on this node (hpk-kubelet ps -a lists all)")
            }
        }
    }
}

/// Ids may be cut short, but not to nothing.
fn begins(id: &str, wanted: &str) -> bool {
    wanted.len() >= 2 && id.starts_with(wanted)
}

impl Found {
    /// The process that runs, as its shim says; none where it doesn't, or the shim is gone.
    pub async fn pid(&self) -> Result<Option<u32>> {
        let sandbox = self.pod.sandbox.as_ref();
        let Some(address) = sandbox.and_then(|sandbox| sandbox.address.as_deref()) else {
            return Ok(None);
        };
        if self.run.exit.is_some() {
            return Ok(None);
        }
        let asked = match Shim::connect(address).await {
            Ok(shim) => shim.state(&self.run.id, "").await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(state) => Ok((state.status != TaskStatus::Stopped).then_some(state.pid)),
            Err(error) if error.is_gone() || error.is_not_found() => Ok(None),
            Err(hpk_shim_client::Error::Connect { .. }) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("ask the shim of {}", self.pod.name)),
        }
    }
}

/// What a run is doing, in crictl's words.
pub fn state(run: &Instance) -> &'static str {
    match (&run.started_at, &run.exit) {
        (_, Some(_)) => "Exited",
        (Some(_), None) => "Running",
        (None, None) => "Created",
    }
}

#[cfg(test)]
pub mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::pod::record::{ContainerRecord, SandboxRecord};

    /// A pod that has a container of each name; their ids are the pod's with the name behind.
    pub fn pod(namespace: &str, name: &str, containers: &[&str]) -> PodRecord {
        let mut pod = PodRecord::new(&Pod::default(), Timestamp::UNIX_EPOCH);
        pod.namespace = namespace.to_owned();
        pod.name = name.to_owned();
        pod.uid = format!("uid-{namespace}-{name}");
        pod.sandbox = Some(SandboxRecord::for_tests());
        for container in containers {
            let record = ContainerRecord {
                current: Some(Instance::for_tests(&format!("{name}{container}"), None)),
                ..ContainerRecord::default()
            };
            pod.containers.insert((*container).to_owned(), record);
        }
        pod
    }

    #[test]
    fn a_container_is_meant_by_name_path_or_beginning_of_its_id() {
        let records = Records(vec![
            pod("default", "web", &["app", "proxy"]),
            pod("other", "web2", &["app"]),
        ]);
        let found = |wanted: &str| {
            let found = records.container(wanted).expect("found");
            format!("{}/{}", found.pod.name, found.name)
        };
        assert_eq!(found("proxy"), "web/proxy");
        assert_eq!(found("web/app"), "web/app");
        assert_eq!(found("other/web2/app"), "web2/app");
        assert_eq!(found("web2a"), "web2/app");
        let fault = |wanted: &str| records.container(wanted).expect_err("fault").to_string();
        assert!(fault("app").contains("default/web/app, other/web2/app"));
        assert!(fault("nosuch").contains("\"nosuch\""));
        assert_eq!(records.pods("default/web").len(), 1);
        assert_eq!(records.pods("uid-other").len(), 1);
    }

    #[test]
    fn a_place_without_records_is_no_bubble() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fault = Records::read(dir.path()).expect_err("fault").to_string();
        assert!(fault.contains("bubble"), "{fault}");
        let folder = dir.path().join("pods/uid");
        fs::create_dir_all(&folder).expect("made");
        pod("default", "web", &["app"])
            .save(&folder)
            .expect("saved");
        let torn = dir.path().join("pods/torn");
        fs::create_dir_all(&torn).expect("made");
        fs::write(PodRecord::path(&torn), "{").expect("written");
        let read = Records::read(dir.path()).expect("read");
        assert_eq!(read.containers().count(), 1);
    }
}
