//! Who is evicted first, and what is said of it. Pure.
//! Source: pkg/kubelet/eviction/helpers.go: over its request, lower priority, more over its request.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::Pod;

use super::threshold::{Level, Resource, Threshold};
use crate::manifests::is_static;
use crate::quantity::Quantity;

/// From this priority on (system-cluster-critical) a pod is never evicted.
const CRITICAL: i32 = 2_000_000_000;

/// What a container has of the resource, and has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    pub container: String,
    pub used: u64,
    pub requested: u64,
}

impl Use {
    pub fn new(pod: &Pod, container: &str, resource: &str, used: u64) -> Self {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers)
        });
        let mut requests = containers
            .filter(|c| c.name == container)
            .filter_map(|c| c.resources.as_ref()?.requests.as_ref()?.get(resource))
            .filter_map(|quantity| Quantity::parse(&quantity.0).ok());
        Self {
            container: container.to_owned(),
            used,
            requested: requests
                .next()
                .map_or(0, |q| u64::try_from(q.value()).unwrap_or(0)),
        }
    }
}

/// A pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    critical: bool,
    priority: i32,
    uses: Vec<Use>,
}

impl Candidate {
    pub fn new(pod: &Pod, uses: Vec<Use>) -> Self {
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            critical: is_critical(pod),
            priority: priority(pod),
            uses,
        }
    }

    /// Units beyond what was asked for; less than none where less is used.
    fn excess(&self) -> i128 {
        let excess = |u: &Use| i128::from(u.used) - i128::from(u.requested);
        self.uses.iter().map(excess).sum()
    }
}

/// The pod's priority; 0 unless admission gave it one.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// Pods that the system itself needs: of the highest priorities, or from the node's own folder.
pub fn is_critical(pod: &Pod) -> bool {
    priority(pod) >= CRITICAL || is_static(pod)
}

/// Whose turn it is, if anyone's.
pub fn first(candidates: Vec<Candidate>, resource: Resource) -> Option<Candidate> {
    candidates
        .into_iter()
        .filter(|candidate| !candidate.critical)
        .min_by_key(|candidate| {
            let excess = match resource {
                // By pod this isn't known: priority alone decides.
                Resource::Pids => 0,
                _ => candidate.excess(),
            };
            (excess <= 0, candidate.priority, Reverse(excess))
        })
}

/// What the pod's status says.
pub fn message(
    candidate: &Candidate,
    threshold: &Threshold,
    levels: &[Level],
    resource: Resource,
) -> String {
    let name = resource.name();
    let mut text = format!("The node was low on resource: {name}. ");
    if let Some(level) = threshold.level(levels) {
        let wanted = amount(threshold.amount(level.capacity), resource);
        let left = amount(level.available, resource);
        text.push_str(&format!(
            "Threshold quantity: {wanted}, available: {left}. "
        ));
    }
    for Use {
        container,
        used,
        requested,
    } in candidate.uses.iter().filter(|u| u.used > u.requested)
    {
        let used = amount(*used, resource);
        let requested = match requested {
            0 => "0".to_owned(),
            bytes => amount(*bytes, resource),
        };
        text.push_str(&format!(
            "Container {container} was using {used}, request is {requested}, has larger consumption of {name}. "
        ));
    }
    text
}

/// Bytes in Ki, as the stock kubelet prints them; others as they are.
fn amount(units: u64, resource: Resource) -> String {
    match resource {
        Resource::Memory | Resource::Disk => format!("{}Ki", units / 1024),
        Resource::Inodes | Resource::Pids => units.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::threshold::Signal;
    use crate::manifests::SOURCE;
    use serde_json::json;

    /// `used` and `requested` in Mi.
    fn pod(uid: &str, priority: i32, requested: u64, used: u64) -> Candidate {
        let resources = json!({"requests": {"memory": format!("{requested}Mi")}});
        let spec =
            json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).expect("a pod");
        let uses = vec![Use::new(&pod, "c", "memory", used << 20)];
        Candidate::new(&pod, uses)
    }

    fn order(mut left: Vec<Candidate>) -> Vec<String> {
        let mut order = Vec::new();
        while let Some(next) = first(left.clone(), Resource::Memory) {
            left.retain(|candidate| candidate.uid != next.uid);
            order.push(next.uid);
        }
        order
    }

    #[test]
    fn who_is_over_its_request_goes_first_then_the_lower_priority_then_the_greater_excess() {
        let all = vec![
            pod("within", 0, 100, 50),
            pod("important", 1000, 10, 500),
            pod("a-little-over", 0, 10, 20),
            pod("far-over", 0, 10, 100),
            pod("critical", CRITICAL, 0, 900),
        ];
        assert_eq!(
            order(all),
            ["far-over", "a-little-over", "important", "within"]
        );
    }

    #[test]
    fn requests_beyond_any_number_are_added_up() {
        let all = Use {
            container: "c".to_owned(),
            used: 0,
            requested: u64::MAX,
        };
        let pod = Candidate::new(&Pod::default(), vec![all.clone(), all]);
        assert_eq!(pod.excess(), -2 * i128::from(u64::MAX));
    }

    #[test]
    fn a_pod_of_the_nodes_own_folder_is_never_evicted() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"annotations": {SOURCE: "file"}}}))
                .expect("a pod");
        assert!(is_critical(&pod));
    }

    #[test]
    fn the_message_is_the_stock_kubelets() {
        let threshold = Threshold::parse("memory.available<100Mi").expect("parsed");
        let levels = [Level {
            signal: Signal::MemoryAvailable,
            available: 50 << 20,
            capacity: 1 << 30,
        }];
        assert_eq!(
            message(&pod("p", 0, 0, 60), &threshold, &levels, Resource::Memory),
            "The node was low on resource: memory. Threshold quantity: 102400Ki, available: 51200Ki. \
             Container c was using 61440Ki, request is 0, has larger consumption of memory. "
        );
    }
}
