//! What must survive the kubelet's death: one small file per pod, replaced atomically.
//!
//! Each step that can't be undone is written here before it is taken, so that a kubelet that died
//! in between finds what it may have left: a sandbox with its shim, a container being created.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::allocation::Allocation;
use super::state::State;
use crate::devices::plan::Assignment;
use crate::manifests::is_static;
use crate::status::Phase;
use crate::volumes::Mounted;

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't write the pod's state to {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't read the pod's state from {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("can't understand the pod's state in {path}")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub state: State,
    /// Its manifest is a file of this node's: the API server has never heard of its uid.
    #[serde(default)]
    pub is_static: bool,
    pub start_time: Timestamp,
    /// Seconds containers get to end, should the pod be gone from the API when we come back.
    pub grace_seconds: i64,
    /// Sandboxes made so far.
    pub sandbox_attempt: u32,
    pub sandbox: Option<SandboxRecord>,
    pub containers: BTreeMap<String, ContainerRecord>,
    /// Why the pod as a whole failed (rejected, deadline).
    pub verdict: Option<Verdict>,
    /// How it ended by the API's word, where that isn't ours: it ended before we knew of it, or another has said so.
    #[serde(default)]
    pub over: Option<Phase>,
    /// The node has told it to end.
    #[serde(default)]
    pub order: Option<Order>,
    /// CPU and memory as admitted, or as resized since.
    #[serde(default)]
    pub allocation: Allocation,
    /// Devices that its containers have.
    #[serde(default)]
    pub devices: Assignment,
    #[serde(default)]
    pub resize: ResizeRecord,
    /// Digests of the images that are its volumes: what was mounted, whatever their tags name by now.
    #[serde(default)]
    pub volume_images: BTreeSet<String>,
}

/// A resize in place, as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizeRecord {
    /// Why the resources asked for aren't the pod's.
    pub held: Option<Verdict>,
    /// The pod's generation whose resources its containers are being given.
    pub under_way: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
}

/// The node's word that the pod is to end, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub verdict: Verdict,
    /// Seconds for its containers, at most.
    pub grace: i64,
}

/// The sandbox, from before it is made until it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub bundle: PathBuf,
    /// None on the host network.
    pub netns: Option<PathBuf>,
    /// For the CNI plugins, which want at DEL what they got at ADD.
    pub port_mappings: Vec<serde_json::Value>,
    pub address: Option<String>,
    pub pid: u32,
    pub ips: Vec<String>,
    pub ready: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// The last started.
    pub current: Option<Instance>,
    /// The one before.
    pub previous: Option<Instance>,
    /// Seconds to wait before the next start; 0 before the first restart.
    pub backoff_seconds: u32,
    pub backoff_set: Option<Timestamp>,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    /// 0, 1, … : the restart count.
    pub attempt: u32,
    /// Which sandbox it ran in ([`PodRecord::sandbox_attempt`]).
    pub sandbox: u32,
    pub image: String,
    pub image_id: String,
    pub log: PathBuf,
    pub bundle: PathBuf,
    pub started_at: Option<Timestamp>,
    pub exit: Option<Exit>,
    /// What the image asks to be stopped with, e.g. `SIGQUIT`.
    pub stop_signal: Option<String>,
    /// CPU and memory that it was started with, or given since.
    #[serde(default)]
    pub resources: Option<ResourceRequirements>,
    /// Those of the pod as a whole at that time, which hold where the container has none.
    #[serde(default)]
    pub whole: Option<ResourceRequirements>,
    /// Stopped because the pod names another image by now: runs again whatever its policy.
    #[serde(default)]
    pub replaced: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
}

impl Instance {
    pub fn is_running(&self) -> bool {
        self.started_at.is_some() && self.exit.is_none()
    }
}

impl ContainerRecord {
    pub fn is_running(&self) -> bool {
        self.current.as_ref().is_some_and(Instance::is_running)
    }

    pub fn exit(&self) -> Option<&Exit> {
        self.current.as_ref()?.exit.as_ref()
    }

    /// The restart count that the next run will have.
    pub fn next_attempt(&self) -> u32 {
        self.current
            .as_ref()
            .map_or(0, |instance| instance.attempt + 1)
    }
}

impl PodRecord {
    /// A pod never seen here. What its status says of an earlier life on this node (whose /run is
    /// gone) is taken over: restart counts go on, and what had ended stays ended.
    pub fn new(pod: &Pod, now: Timestamp) -> Self {
        let meta = &pod.metadata;
        let status = pod.status.as_ref();
        let mut containers = BTreeMap::new();
        let lists = status.map(|s| [&s.container_statuses, &s.ephemeral_container_statuses]);
        let statuses = lists.into_iter().flatten().flatten();
        for status in statuses.flatten() {
            if let Some(current) = from_status(status, now) {
                let record = ContainerRecord {
                    current: Some(current),
                    ..ContainerRecord::default()
                };
                containers.insert(status.name.clone(), record);
            }
        }
        let start_time = status
            .and_then(|s| s.start_time.as_ref())
            .map_or(now, |time| time.0);
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            state: State::Pending,
            is_static: is_static(pod),
            start_time,
            grace_seconds: pod
                .spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
                .unwrap_or(30),
            sandbox_attempt: 0,
            sandbox: None,
            containers,
            verdict: None,
            over: None,
            order: None,
            allocation: Allocation::default(),
            devices: Assignment::default(),
            resize: ResizeRecord::default(),
            volume_images: BTreeSet::new(),
        }
    }

    /// Notes that the API has the pod as over, which it stays: a pod that was told so doesn't run on, as with the stock
    /// kubelet (pkg/kubelet/pod_workers.go, UpdatePod).
    pub fn hear_of_end(&mut self, pod: &Pod) {
        if !self.state.is_over() && self.over.is_none() {
            self.over = Phase::end_of(pod);
        }
    }

    /// Takes over which images volumes are. Those of an earlier mount stay: containers may run on them.
    pub fn note_volume_images(&mut self, mounted: &mut Mounted) {
        let images = mounted
            .values_mut()
            .filter_map(|source| source.image.take());
        self.volume_images
            .extend(images.map(|image| image.digest().to_owned()));
    }

    /// Whether a container of it runs, or may yet, so that its devices are no other pod's.
    pub fn holds_devices(&self) -> bool {
        // One whose end nobody saw may live until the sandbox's removal has ended it.
        let may_run = |container: &ContainerRecord| {
            let exit = container.current.as_ref().map(|run| run.exit.as_ref());
            match exit {
                None => false,
                Some(None) => true,
                Some(Some(exit)) => exit.is_lost() && self.sandbox.is_some(),
            }
        };
        match self.state {
            State::Pending | State::Finished | State::Rejected | State::Removed => false,
            State::Preparing | State::Initializing | State::Running => true,
            State::Finishing | State::Terminating => self.containers.values().any(may_run),
        }
    }

    pub fn container(&mut self, name: &str) -> &mut ContainerRecord {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// The file in the pod's run folder.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("pod.json")
    }

    /// Replaces the pod's file in `dir`: the old content or the new, never half.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let path = Self::path(dir);
        let write = |source| Error::Write {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec(self).map_err(|error| write(error.into()))?;
        let next = dir.join(".pod.json.new");
        fs::write(&next, text).map_err(write)?;
        fs::rename(&next, &path).map_err(write)
    }

    /// None if the folder holds no pod's file.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(dir);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| Error::Parse { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }
}

/// An ended run, made from what the API server still says of it.
fn from_status(status: &ContainerStatus, now: Timestamp) -> Option<Instance> {
    let state = status.state.as_ref()?;
    let exit = match (&state.terminated, &state.running) {
        (Some(ended), _) => Exit {
            code: ended.exit_code,
            reason: ended.reason.clone().unwrap_or_default(),
            message: ended.message.clone().unwrap_or_default(),
            at: ended.finished_at.as_ref().map_or(now, |time| time.0),
        },
        (None, Some(_)) => lost(now),
        // Waiting for its next run: the last one is in lastState.
        (None, None) => {
            let ended = status.last_state.as_ref()?.terminated.as_ref()?;
            Exit {
                code: ended.exit_code,
                reason: ended.reason.clone().unwrap_or_default(),
                message: ended.message.clone().unwrap_or_default(),
                at: ended.finished_at.as_ref().map_or(now, |time| time.0),
            }
        }
    };
    Some(Instance {
        id: status
            .container_id
            .as_deref()
            .and_then(|id| id.strip_prefix("hpk://"))
            .unwrap_or_default()
            .to_owned(),
        attempt: u32::try_from(status.restart_count).unwrap_or(0),
        sandbox: 0,
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        log: PathBuf::new(),
        bundle: PathBuf::new(),
        started_at: Some(now),
        exit: Some(exit),
        stop_signal: None,
        resources: None,
        whole: None,
        replaced: false,
    })
}

/// The reason of an end that nobody saw.
const LOST: &str = "ContainerStatusUnknown";

impl Exit {
    /// Nobody saw it.
    pub fn is_lost(&self) -> bool {
        self.reason == LOST
    }
}

/// The end of a run that nobody saw.
pub fn lost(now: Timestamp) -> Exit {
    Exit {
        code: 137,
        reason: LOST.to_owned(),
        message: "The container could not be located when the pod was terminated".to_owned(),
        at: now,
    }
}

#[cfg(test)]
impl Instance {
    /// Run `id`, started at 1 s; ended at 2 s with this code, if one is given.
    pub fn for_tests(id: &str, exit: Option<i32>) -> Self {
        let second = |at| Timestamp::from_second(at).expect("in range");
        Self {
            id: id.to_owned(),
            attempt: 0,
            sandbox: 1,
            image: "img".to_owned(),
            image_id: "img@sha256:0".to_owned(),
            log: PathBuf::new(),
            bundle: PathBuf::new(),
            started_at: Some(second(1)),
            exit: exit.map(|code| Exit {
                code,
                reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
                message: String::new(),
                at: second(2),
            }),
            stop_signal: None,
            resources: None,
            whole: None,
            replaced: false,
        }
    }
}

#[cfg(test)]
impl SandboxRecord {
    /// One that is ready.
    pub fn for_tests() -> Self {
        Self {
            id: "s".to_owned(),
            bundle: PathBuf::new(),
            netns: None,
            port_mappings: Vec::new(),
            address: None,
            pid: 1,
            ips: vec!["10.244.0.5".to_owned()],
            ready: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_comes_back_as_it_was_saved() {
        let dir = tempfile::tempdir().expect("tempdir");
        let record = PodRecord::new(&Pod::default(), Timestamp::UNIX_EPOCH);
        record.save(dir.path()).expect("saved");
        assert_eq!(PodRecord::load(dir.path()).expect("loaded"), Some(record));
    }

    #[test]
    fn devices_are_held_until_no_container_runs_nor_will() {
        let mut record = PodRecord::new(&Pod::default(), Timestamp::UNIX_EPOCH);
        assert!(!record.holds_devices());
        record.state = State::Running;
        assert!(record.holds_devices());
        record.state = State::Terminating;
        record.container("c").current = Some(Instance::for_tests("i", None));
        assert!(record.holds_devices());
        record.container("c").current = Some(Instance::for_tests("i", Some(0)));
        assert!(!record.holds_devices());
    }

    #[test]
    fn an_image_volume_is_known_by_what_was_mounted_first_and_later() {
        let mut record = PodRecord::new(&Pod::default(), Timestamp::UNIX_EPOCH);
        record.volume_images.insert("sha256:1".to_owned());
        let image = crate::images::Ready::for_tests();
        let source = crate::volumes::apply::Source {
            path: image.lower.clone(),
            read_only: true,
            image: Some(image),
        };
        let mut mounted = Mounted::from([("v".to_owned(), source)]);
        record.note_volume_images(&mut mounted);
        assert!(record.volume_images.iter().eq(["sha256:0", "sha256:1"]));
        assert!(mounted["v"].image.is_none());
    }

    #[test]
    fn a_torn_file_is_an_error_and_not_an_empty_record() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::write(dir.path().join("pod.json"), "{").expect("write");
        assert!(matches!(
            PodRecord::load(dir.path()),
            Err(Error::Parse { .. })
        ));
    }

    #[test]
    fn an_earlier_life_goes_on_counting() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {}, "status": {"containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 3,
             "state": {"running": {}}}]}}))
            .expect("pod");
        let record = PodRecord::new(&pod, Timestamp::UNIX_EPOCH);
        assert_eq!(record.containers["c"].next_attempt(), 4);
    }
}
