//! Whom a node under pressure, or one that is about to end, takes. Pure.
//! Source: pkg/kubelet/eviction, Admit; pkg/kubelet/nodeshutdown.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::EVICTED;
use super::rank::is_critical;
use crate::node::standing::Standing;
use crate::pod::record::Verdict;
use crate::qos::{self, Class};

/// The reason and message of a pod that comes too late.
const SHUTDOWN: (&str, &str) = (
    "NodeShutdown",
    "Pod was rejected as the node is shutting down.",
);

/// Why the pod isn't taken.
pub fn refuse(pod: &Pod, standing: &Standing) -> Option<Verdict> {
    if standing.shutting_down {
        return Some(Verdict {
            reason: SHUTDOWN.0.to_owned(),
            message: SHUTDOWN.1.to_owned(),
        });
    }
    let conditions: Vec<&str> = [
        (standing.memory_pressure, "MemoryPressure"),
        (standing.disk_pressure, "DiskPressure"),
        (standing.pid_pressure, "PIDPressure"),
    ]
    .into_iter()
    .filter_map(|(holds, name)| holds.then_some(name))
    .collect();
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    // Memory alone: who has asked for some gets it, and who tolerates the taint has said so.
    if conditions == ["MemoryPressure"] {
        let class = pod.spec.as_ref().map(qos::class);
        if class != Some(Class::BestEffort) || tolerates(pod, "node.kubernetes.io/memory-pressure")
        {
            return None;
        }
    }
    Some(Verdict {
        reason: EVICTED.to_owned(),
        message: format!("The node had condition: [{}]. ", conditions.join(" ")),
    })
}

/// Whether the pod tolerates a taint of this key, without a value, of effect NoSchedule.
fn tolerates(pod: &Pod, key: &str) -> bool {
    let fits = |toleration: &Toleration| {
        let of_key = match toleration.key.as_deref().unwrap_or_default() {
            "" => toleration.operator.as_deref() == Some("Exists"),
            own => own == key,
        };
        let effect = toleration.effect.as_deref().unwrap_or_default();
        of_key && (effect.is_empty() || effect == "NoSchedule")
    };
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref());
    tolerations.unwrap_or_default().iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn short_of_memory_only_pods_that_ask_for_none_are_turned_away() {
        let standing = Standing {
            memory_pressure: true,
            ..Standing::default()
        };
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let verdict = refuse(&plain, &standing).expect("refused");
        assert_eq!(
            verdict.message,
            "The node had condition: [MemoryPressure]. "
        );
        let asks = json!({"requests": {"memory": "1Mi"}});
        let burstable = pod(json!({"containers": [{"name": "c", "resources": asks}]}));
        assert_eq!(refuse(&burstable, &standing), None);
        let tolerant = json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]);
        let tolerant = pod(json!({"containers": [{"name": "c"}], "tolerations": tolerant}));
        assert_eq!(refuse(&tolerant, &standing), None);
        assert_eq!(refuse(&plain, &Standing::default()), None);
    }

    #[test]
    fn short_of_disk_only_critical_pods_are_taken() {
        let standing = Standing {
            disk_pressure: true,
            ..Standing::default()
        };
        let asks = json!({"requests": {"memory": "1Mi"}});
        let burstable = json!({"containers": [{"name": "c", "resources": asks}]});
        assert!(refuse(&pod(burstable), &standing).is_some());
        let critical = json!({"containers": [{"name": "c"}], "priority": 2_000_001_000});
        assert_eq!(refuse(&pod(critical), &standing), None);
    }

    #[test]
    fn a_node_that_ends_takes_nobody() {
        let standing = Standing {
            shutting_down: true,
            ..Standing::default()
        };
        let critical = json!({"containers": [], "priority": 2_000_001_000});
        let verdict = refuse(&pod(critical), &standing).expect("refused");
        assert_eq!(verdict.reason, "NodeShutdown");
    }
}
