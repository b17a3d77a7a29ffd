//! What pods have written to the node's disk, against what they may. Source: pkg/kubelet/eviction, localStorageEviction.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use super::rank::Use;
use super::size::{Size, size};
use super::threshold::Resource;
use super::{LOOK, lives};
use crate::access::Entry;
use crate::agent::Agent;
use crate::pod::paths::Paths;
use crate::quantity::Quantity;
use crate::text;

/// The resource of requests and limits.
const STORAGE: &str = "ephemeral-storage";
/// A pod's files are walked for one part of the time at most, of so many.
const SHARE: u32 = 20;

/// What a pod has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Written {
    /// By volume: emptyDirs on the disk.
    volumes: BTreeMap<String, Size>,
    /// By container: its writable layer and its logs.
    containers: BTreeMap<String, Size>,
}

/// Looks for pods that have written more than they may, and gives each with what is said of it. Only pods that have a limit
/// are measured, those with many files less often. Runs for ever.
pub async fn watch(agent: &Arc<Agent>, over: mpsc::UnboundedSender<(Entry, String)>) {
    let mut due: HashMap<String, Instant> = HashMap::new();
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let entries = lives(agent);
        due.retain(|uid, _| entries.iter().any(|entry| entry.uid() == uid));
        for entry in entries {
            let began = Instant::now();
            let Some(spec) = entry.pod.spec.as_ref().filter(|spec| has_limits(spec)) else {
                continue;
            };
            if due.get(entry.uid()).is_some_and(|due| *due > began) {
                continue;
            }
            let measured = measure(agent, &entry).await;
            due.insert(entry.uid().to_owned(), next_look(began, began.elapsed()));
            match measured {
                Ok(written) => {
                    if let Some(message) = excess(spec, &written) {
                        // Whoever evicts lives as long as this.
                        let _ = over.send((entry, message));
                    }
                }
                Err(error) => tell(&entry, &error),
            }
        }
    }
}

fn next_look(began: Instant, took: Duration) -> Instant {
    began + took * SHARE
}

/// What the pod's containers and volumes have written; a volume counts for the first container. Of what can't be read nothing
/// is known: the pod counts as one that uses nothing.
pub async fn uses(agent: &Arc<Agent>, entry: &Entry, resource: Resource) -> Vec<Use> {
    match measure(agent, entry).await {
        Ok(written) => shares(&entry.pod, &written, resource),
        Err(error) => {
            tell(entry, &error);
            Vec::new()
        }
    }
}

fn tell(entry: &Entry, error: &io::Error) {
    let pod = &entry.pod.metadata.name;
    warn!(pod, error = text::chain(error), "can't measure its files");
}

fn shares(pod: &Pod, written: &Written, resource: Resource) -> Vec<Use> {
    let volumes = sum(written.volumes.values());
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice());
    let uses = containers.unwrap_or_default().iter().enumerate();
    uses.map(|(at, container)| {
        let own = written.containers.get(&container.name).copied();
        let own = own.unwrap_or_default();
        let used = if at == 0 { own + volumes } else { own };
        match resource {
            // Nobody can ask for inodes.
            Resource::Inodes => Use {
                container: container.name.clone(),
                used: used.inodes,
                requested: 0,
            },
            _ => Use::new(pod, &container.name, STORAGE, used.bytes),
        }
    })
    .collect()
}

fn sum<'a>(sizes: impl Iterator<Item = &'a Size>) -> Size {
    sizes.fold(Size::default(), |sum, size| sum + *size)
}

fn limit(limits: Option<&BTreeMap<String, ApiQuantity>>) -> Option<(u64, &str)> {
    let text = limits?.get(STORAGE)?.0.as_str();
    let bytes = Quantity::parse(text).ok()?.value();
    Some((u64::try_from(bytes).ok()?, text))
}

/// An emptyDir on the disk with a limit: its bytes, and as it is written.
fn volume_limits(spec: &PodSpec) -> impl Iterator<Item = (&str, u64, &str)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        // A tmpfs has its limit from the kernel.
        if source.medium.as_deref() == Some("Memory") {
            return None;
        }
        let text = source.size_limit.as_ref()?.0.as_str();
        let bytes = u64::try_from(Quantity::parse(text).ok()?.value()).ok()?;
        (bytes > 0).then_some((volume.name.as_str(), bytes, text))
    })
}

fn container_limits(spec: &PodSpec) -> impl Iterator<Item = (&str, u64, &str)> {
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).filter_map(|container| {
        let (bytes, text) = limit(container.resources.as_ref()?.limits.as_ref())?;
        Some((container.name.as_str(), bytes, text))
    })
}

fn has_limits(spec: &PodSpec) -> bool {
    volume_limits(spec).next().is_some() || container_limits(spec).next().is_some()
}

/// The first limit that is exceeded, in the stock kubelet's words and order.
fn excess(spec: &PodSpec, written: &Written) -> Option<String> {
    for (name, bytes, text) in volume_limits(spec) {
        if written
            .volumes
            .get(name)
            .is_some_and(|used| used.bytes > bytes)
        {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "
            ));
        }
    }
    let apps = |name: &str| spec.containers.iter().any(|c| c.name == name);
    let limits = container_limits(spec).filter(|(name, _, _)| apps(name));
    let total: u128 = limits.map(|(_, bytes, _)| u128::from(bytes)).sum();
    let used = sum(written.volumes.values().chain(written.containers.values()));
    if total > 0 && u128::from(used.bytes) > total {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ));
    }
    for (name, bytes, text) in container_limits(spec) {
        let used = written.containers.get(name);
        if used.is_some_and(|used| used.bytes > bytes) {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {text:?}. "
            ));
        }
    }
    None
}

async fn measure(agent: &Arc<Agent>, entry: &Entry) -> io::Result<Written> {
    let meta = &entry.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let paths = Paths::new(
        &agent.config,
        &text(&meta.namespace),
        &text(&meta.name),
        &text(&meta.uid),
    );
    let runs: Vec<(String, String)> = entry
        .running()
        .map(|(name, run)| (name.to_owned(), run.id.clone()))
        .collect();
    let volumes = disk_volumes(&entry.pod);
    let measured = tokio::task::spawn_blocking(move || {
        let disk = paths.volumes().disk;
        let mut written = Written::default();
        for name in volumes {
            let used = size(&disk.join(&name))?;
            written.volumes.insert(name, used);
        }
        for (name, id) in runs {
            let used = size(&paths.layer(&id))? + size(&paths.logs.join(&name))?;
            written.containers.insert(name, used);
        }
        Ok(written)
    });
    measured
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn disk_volumes(pod: &Pod) -> Vec<String> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let on_disk = volumes.filter(|volume| {
        let source = volume.empty_dir.as_ref();
        source.is_some_and(|source| source.medium.as_deref() != Some("Memory"))
    });
    on_disk.map(|volume| volume.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(limits: &[Option<&str>], volume: serde_json::Value) -> PodSpec {
        let containers: Vec<_> = limits
            .iter()
            .enumerate()
            .map(|(at, limit)| {
                let limits = limit.map(|limit| json!({"limits": {STORAGE: limit}}));
                json!({"name": format!("c{at}"), "resources": limits.unwrap_or(json!({}))})
            })
            .collect();
        let volumes = json!([{"name": "v", "emptyDir": volume}]);
        serde_json::from_value(json!({"containers": containers, "volumes": volumes})).expect("spec")
    }

    fn written(volume: u64, containers: &[u64]) -> Written {
        let size = |bytes| Size { bytes, inodes: 1 };
        let named = containers.iter().enumerate();
        Written {
            volumes: BTreeMap::from([("v".to_owned(), size(volume))]),
            containers: named
                .map(|(at, used)| (format!("c{at}"), size(*used)))
                .collect(),
        }
    }

    #[test]
    fn an_empty_dir_over_its_limit_is_named_and_one_in_memory_is_the_kernels() {
        let on_disk = spec(&[None], json!({"sizeLimit": "1Ki"}));
        assert_eq!(excess(&on_disk, &written(1024, &[0])), None);
        assert_eq!(
            excess(&on_disk, &written(1025, &[0])).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". ")
        );
        let memory = spec(&[None], json!({"sizeLimit": "1Ki", "medium": "Memory"}));
        assert!(!has_limits(&memory));
    }

    #[test]
    fn a_pod_may_write_the_sum_and_a_container_its_own() {
        let both = spec(&[Some("1k"), Some("2k")], json!({}));
        assert_eq!(excess(&both, &written(500, &[900, 1500])), None);
        let pod = excess(&both, &written(2000, &[600, 500])).expect("over");
        assert!(pod.contains("total limit of containers 3000"), "{pod}");
        let one = excess(&both, &written(0, &[1001, 0])).expect("over");
        assert_eq!(
            one,
            "Container c0 exceeded its local ephemeral storage limit \"1k\". "
        );
    }

    #[test]
    fn who_has_no_limit_is_not_measured() {
        assert!(!has_limits(&spec(&[None], json!({}))));
        assert!(has_limits(&spec(&[None, Some("1k")], json!({}))));
    }

    #[test]
    fn limits_that_no_number_of_bytes_exceeds_are_added_up() {
        let most = "9223372036854775807";
        let all = spec(&[Some(most), Some(most), Some(most)], json!({}));
        assert_eq!(excess(&all, &written(u64::MAX, &[1, 2, 3])), None);
    }

    #[test]
    fn short_of_inodes_a_pod_counts_by_its_files() {
        let spec = spec(&[None, None], json!({}));
        let pod = Pod {
            spec: Some(spec),
            ..Pod::default()
        };
        let used = shares(&pod, &written(900, &[500, 7]), Resource::Inodes);
        let used: Vec<_> = used.iter().map(|u| (u.used, u.requested)).collect();
        assert_eq!(used, [(2, 0), (1, 0)]);
        let used = shares(&pod, &written(900, &[500, 7]), Resource::Disk);
        let used: Vec<_> = used.iter().map(|u| u.used).collect();
        assert_eq!(used, [1400, 7]);
    }

    #[test]
    fn who_takes_long_to_measure_is_measured_less_often() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(next_look(began, second), began + second * 20);
        assert!(next_look(began, Duration::from_millis(10)) < began + LOOK);
    }
}
