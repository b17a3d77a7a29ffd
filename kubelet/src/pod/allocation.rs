//! CPU and memory that a pod and its containers have been promised, which a resize changes. Pure.
//! Source: KEP-1287, "In-place Update of Pod Resources"; KEP-5419, of the pod as a whole;
//! pkg/kubelet/allocation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::{Deserialize, Serialize};

use crate::quantity::Quantity;

/// What a pod has been promised; nothing before it is admitted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By name. A pod has one container at least.
    containers: BTreeMap<String, ResourceRequirements>,
    /// To the pod as a whole, where it asks so.
    whole: Option<ResourceRequirements>,
}

/// What can be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

/// What the spec asks for.
pub fn of(spec: &PodSpec) -> Allocation {
    let containers = containers(spec).map(|container| {
        let resources = container.resources.clone().unwrap_or_default();
        (container.name.clone(), resources)
    });
    Allocation {
        containers: containers.collect(),
        whole: spec.resources.clone(),
    }
}

/// Puts what was promised in place of what is asked for. A container without a promise keeps its own.
pub fn apply(spec: &mut PodSpec, allocation: &Allocation) {
    if allocation.containers.is_empty() {
        return;
    }
    spec.resources = allocation.whole.clone();
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        if let Some(resources) = allocation.containers.get(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
}

/// Whether what is asked for is what was promised.
pub fn is_met(desired: &PodSpec, spec: &PodSpec) -> bool {
    same(desired.resources.as_ref(), spec.resources.as_ref())
        && containers(desired)
            .zip(containers(spec))
            .all(|(a, b)| same(a.resources.as_ref(), b.resources.as_ref()))
}

/// Whether two CPUs and memories are the same, however they are written.
pub fn same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    RESIZABLE
        .iter()
        .all(|name| amounts(a, name) == amounts(b, name))
}

/// Request and limit of one resource.
fn amounts(
    resources: Option<&ResourceRequirements>,
    name: &str,
) -> (Option<Quantity>, Option<Quantity>) {
    let amount =
        |map: Option<&BTreeMap<String, ApiQuantity>>| Quantity::parse(&map?.get(name)?.0).ok();
    (
        amount(resources.and_then(|r| r.requests.as_ref())),
        amount(resources.and_then(|r| r.limits.as_ref())),
    )
}

/// Resources of a container and those of its pod as a whole, whose limits hold where the container has none.
#[derive(Debug, Clone, Copy)]
pub struct Within<'a> {
    pub own: Option<&'a ResourceRequirements>,
    pub whole: Option<&'a ResourceRequirements>,
}

impl Within<'_> {
    /// Its own request, and the limit that holds for it.
    fn amounts(self, name: &str) -> (Option<Quantity>, Option<Quantity>) {
        let (request, limit) = amounts(self.own, name);
        // As `Limits::of_container`: none is 0, too.
        let limit = limit.filter(|limit| *limit > Quantity::default());
        (request, limit.or_else(|| amounts(self.whole, name).1))
    }
}

/// Whether the container wants to be restarted for the change from `old` to `new`.
pub fn needs_restart(container: &Container, old: Within<'_>, new: Within<'_>) -> bool {
    container.resize_policy.iter().flatten().any(|policy| {
        let name = &policy.resource_name;
        policy.restart_policy == "RestartContainer" && old.amounts(name) != new.amounts(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(cpu: &str) -> PodSpec {
        serde_json::from_value(json!({"containers": [{
            "name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                             {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]}))
        .expect("spec")
    }

    #[test]
    fn a_promise_stands_until_the_next() {
        let desired = spec("2");
        let mut known = desired.clone();
        apply(&mut known, &of(&spec("1")));
        assert!(!is_met(&desired, &known));
        apply(&mut known, &of(&desired));
        assert!(is_met(&desired, &known));
    }

    #[test]
    fn what_was_promised_to_the_pod_as_a_whole_stands_too() {
        let whole = |cpu: &str| PodSpec {
            resources: serde_json::from_value(json!({"limits": {"cpu": cpu}})).expect("resources"),
            ..spec("1")
        };
        let desired = whole("2");
        let mut known = desired.clone();
        apply(&mut known, &Allocation::default());
        assert!(is_met(&desired, &known));
        apply(&mut known, &of(&whole("1")));
        assert_eq!(known, whole("1"));
        assert!(!is_met(&desired, &known));
    }

    #[test]
    fn amounts_count_and_not_their_spelling() {
        assert!(is_met(&spec("1"), &spec("1000m")));
        assert!(!is_met(&spec("1"), &spec("1001m")));
    }

    #[test]
    fn only_the_resources_named_by_the_policy_want_a_restart() {
        let container = spec("1").containers.remove(0);
        let old = |requests: &str, limit: &str| -> ResourceRequirements {
            serde_json::from_value(
                json!({"requests": {"cpu": requests}, "limits": {"memory": limit}}),
            )
            .expect("resources")
        };
        let restarts = |old: &ResourceRequirements, new: Option<&ResourceRequirements>| {
            let within = |own| Within { own, whole: None };
            needs_restart(&container, within(Some(old)), within(new))
        };
        let now = container.resources.as_ref();
        assert!(!restarts(&old("2", "1Gi"), now));
        assert!(restarts(&old("1", "2Gi"), now));
    }

    #[test]
    fn the_pods_limit_counts_where_the_container_has_none() {
        let container = spec("1").containers.remove(0);
        let limit = |memory: &str| -> ResourceRequirements {
            serde_json::from_value(json!({"limits": {"memory": memory}})).expect("resources")
        };
        let (small, large, own) = (limit("1Gi"), limit("2Gi"), limit("64Mi"));
        let restarts = |own| {
            let within = |whole| Within {
                own,
                whole: Some(whole),
            };
            needs_restart(&container, within(&small), within(&large))
        };
        assert!(restarts(None));
        assert!(!restarts(Some(&own)));
        assert!(restarts(Some(&limit("0"))));
    }
}
