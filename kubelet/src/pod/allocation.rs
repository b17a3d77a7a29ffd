//! CPU and memory that a pod's containers have been promised, which a resize changes. Pure.
//! Source: KEP-1287, "In-place Update of Pod Resources"; pkg/kubelet/allocation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

/// By container name.
pub type Allocation = BTreeMap<String, ResourceRequirements>;

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
    containers(spec)
        .map(|container| {
            let resources = container.resources.clone().unwrap_or_default();
            (container.name.clone(), resources)
        })
        .collect()
}

/// Puts what was promised in place of what is asked for. A container without a promise keeps its own.
pub fn apply(spec: &mut PodSpec, allocation: &Allocation) {
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        if let Some(resources) = allocation.get(&container.name) {
            container.resources = Some(resources.clone());
        }
    }
}

/// Whether what is asked for is what was promised.
pub fn is_met(desired: &PodSpec, spec: &PodSpec) -> bool {
    containers(desired)
        .zip(containers(spec))
        .all(|(a, b)| same(a.resources.as_ref(), b.resources.as_ref()))
}

/// Whether two containers' CPU and memory are the same, however they are written.
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

/// Whether the container wants to be restarted for the change from `old` to its present resources.
pub fn needs_restart(container: &Container, old: Option<&ResourceRequirements>) -> bool {
    container.resize_policy.iter().flatten().any(|policy| {
        policy.restart_policy == "RestartContainer"
            && amounts(old, &policy.resource_name)
                != amounts(container.resources.as_ref(), &policy.resource_name)
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
        assert!(!needs_restart(&container, Some(&old("2", "1Gi"))));
        assert!(needs_restart(&container, Some(&old("1", "2Gi"))));
    }
}
