//! `/stats/summary`. Pure. Source: k8s.io/kubelet/pkg/apis/stats/v1alpha1.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Figures, Usage};

/// The Summary object. What a bubble can't know (network, inodes, rates) is left out.
pub fn summary(usage: &Usage, now: Timestamp) -> Value {
    let cpu = |figures: &Figures| {
        let nanoseconds = u64::try_from(figures.cpu.as_nanos()).unwrap_or(u64::MAX);
        json!({"time": now, "usageCoreNanoSeconds": nanoseconds})
    };
    let memory = |figures: &Figures| json!({"time": now, "usageBytes": figures.memory, "workingSetBytes": figures.working_set});
    let disk = &usage.disk;
    let pods: Vec<Value> = usage
        .pods
        .iter()
        .map(|pod| {
            let containers: Vec<Value> = pod
                .containers
                .iter()
                .map(|container| {
                    json!({
                        "name": container.name,
                        "startTime": container.started_at,
                        "cpu": cpu(&container.all),
                        "memory": memory(&container.all),
                    })
                })
                .collect();
            json!({
                "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "startTime": pod.started_at,
                "containers": containers,
                "cpu": cpu(&pod.all),
                "memory": memory(&pod.all),
            })
        })
        .collect();
    json!({
        "node": {
            "nodeName": usage.node,
            "startTime": usage.started_at,
            "cpu": cpu(&usage.all),
            "memory": memory(&usage.all),
            "fs": {
                "time": now,
                "capacityBytes": disk.capacity,
                "availableBytes": disk.available,
                "usedBytes": disk.capacity.saturating_sub(disk.available),
            },
        },
        "pods": pods,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_by_pod_and_name() {
        let now = Timestamp::from_second(300).expect("in range");
        let all = summary(&Usage::for_tests(), now);
        let pod = &all["pods"][0];
        assert_eq!(pod["podRef"]["uid"], "u1");
        let container = &pod["containers"][0];
        assert_eq!(container["cpu"]["usageCoreNanoSeconds"], 1_500_000_000_u64);
        assert_eq!(container["startTime"], "1970-01-01T00:03:20Z");
    }
}
