//! Quality of service: the pod's class, and what the kernel is told of it. Pure.
//! Source: Kubernetes, "Pod Quality of Service Classes"; pkg/kubelet/qos/policy.go.

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use crate::quantity::Quantity;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Guaranteed => "Guaranteed",
            Class::Burstable => "Burstable",
            Class::BestEffort => "BestEffort",
        }
    }
}

/// A container's request of one resource; its limit where no request is set.
pub fn request(container: &Container, resource: &str) -> Option<Quantity> {
    requested(container.resources.as_ref(), resource)
}

/// The same of a container's or pod's resources.
pub fn requested(resources: Option<&ResourceRequirements>, resource: &str) -> Option<Quantity> {
    let resources = resources?;
    let requests = resources.requests.as_ref();
    requests
        .and_then(|map| map.get(resource))
        .or_else(|| resources.limits.as_ref()?.get(resource))
        .and_then(|quantity| Quantity::parse(&quantity.0).ok())
}

/// A container's or pod's limit of one resource.
pub fn limited(resources: Option<&ResourceRequirements>, resource: &str) -> Option<Quantity> {
    let limits = resources?.limits.as_ref()?;
    Quantity::parse(&limits.get(resource)?.0).ok()
}

/// Guaranteed: every container has limits of CPU and memory, equal to its requests. BestEffort: no
/// container has either. What the pod as a whole asks for goes before what its containers do.
pub fn class(spec: &PodSpec) -> Class {
    let whole = spec.resources.as_ref().filter(|resources| {
        let both = [&resources.requests, &resources.limits];
        both.into_iter().flatten().any(|map| !map.is_empty())
    });
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let all: Vec<Option<&ResourceRequirements>> = match whole {
        Some(whole) => vec![Some(whole)],
        None => containers.map(|c| c.resources.as_ref()).collect(),
    };
    let zero = Quantity::default();
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        for resource in ["cpu", "memory"] {
            let requested = requested(resources, resource).filter(|q| *q > zero);
            let limited = limited(resources, resource).filter(|q| *q > zero);
            any |= requested.is_some() || limited.is_some();
            guaranteed &= limited.is_some() && requested == limited;
        }
    }
    match (any, guaranteed) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

/// The oom_score_adj of a container. `memory`: the node's, in bytes.
pub fn oom_score_adj(class: Class, container: &Container, memory: i128) -> i32 {
    match class {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let requested = request(container, "memory").unwrap_or_default().value();
            if memory <= 0 {
                return 999;
            }
            let score = 1000 - (1000 * requested) / memory;
            i32::try_from(score.clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(resources: serde_json::Value) -> Class {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        class(&serde_json::from_value(spec).expect("spec"))
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        assert_eq!(of(json!({})), Class::BestEffort);
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), Class::Burstable);
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(of(full), Class::Guaranteed);
    }

    #[test]
    fn what_the_whole_pod_asks_for_decides() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let spec = json!({"containers": [{"name": "c"}], "resources": full});
        let spec: PodSpec = serde_json::from_value(spec).expect("spec");
        assert_eq!(class(&spec), Class::Guaranteed);
    }

    #[test]
    fn who_asks_for_more_memory_is_killed_later() {
        let asks = |memory: &str| -> Container {
            let resources = json!({"requests": {"memory": memory}});
            serde_json::from_value(json!({"name": "c", "resources": resources})).expect("container")
        };
        let small = oom_score_adj(Class::Burstable, &asks("1Mi"), 4 << 30);
        let large = oom_score_adj(Class::Burstable, &asks("3Gi"), 4 << 30);
        assert!(large < small);
    }
}
