//! Quality of service: the pod's class, and what the kernel is told of it. Pure.
//! Source: Kubernetes, "Pod Quality of Service Classes"; pkg/kubelet/qos/policy.go.

use k8s_openapi::api::core::v1::{Container, PodSpec};

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
    let resources = container.resources.as_ref()?;
    let requests = resources.requests.as_ref();
    requests
        .and_then(|map| map.get(resource))
        .or_else(|| resources.limits.as_ref()?.get(resource))
        .and_then(|quantity| Quantity::parse(&quantity.0).ok())
}

/// A container's limit of one resource.
pub fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    Quantity::parse(&limits.get(resource)?.0).ok()
}

/// Guaranteed: every container has limits of CPU and memory, equal to its requests. BestEffort: no
/// container has either.
pub fn class(spec: &PodSpec) -> Class {
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let zero = Quantity::default();
    let mut any = false;
    let mut guaranteed = true;
    for container in all {
        for resource in ["cpu", "memory"] {
            let requested = request(container, resource).filter(|q| *q > zero);
            let limited = limit(container, resource).filter(|q| *q > zero);
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
