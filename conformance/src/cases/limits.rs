//! CPU and memory limits: enforced where the site gives a cgroup, and said not to be elsewhere.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::faults::{KUBELET, kill_and_await_return, pids};
use super::{Context, SIZE, Unavailable, in_namespace};
use crate::cluster::{Cluster, in_cgroup};
use crate::testbed::Testbed;
use crate::wait;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: "busybox:1.37"
    securityContext: {runAsUser: 1000}
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.2; done"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
"#;
/// Allocates until it is killed.
const GREEDY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: "busybox:1.37"
    command: [tail, /dev/zero]
    resources: {limits: {memory: 24Mi}}
"#;
/// Limited as a whole; its container has no limit of its own.
const WHOLE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  terminationGracePeriodSeconds: 1
  resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 300m, memory: 48Mi}}
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "trap exit TERM; while :; do sleep 0.2; done"]
"#;
/// Allocates until it is killed, once the file `go` is there.
const LATE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "until [ -e /flag/go ]; do sleep 0.1; done; exec tail /dev/zero"]
    resources: {limits: {memory: 24Mi}}
    volumeMounts: [{name: flag, mountPath: /flag}]
  volumes: [{name: flag, hostPath: {path: /home/hpc/late, type: DirectoryOrCreate}}]
"#;

pub fn a_node_without_cgroups_says_so_and_a_resize_is_counted(context: &mut Context) -> Result<()> {
    in_namespace(context, "unlimited", |cluster, namespace| {
        ensure!(
            condition(cluster)? == "True",
            "a node in which no cgroup can be made doesn't say that limits are not enforced"
        );
        cluster.apply(namespace, POD)?;
        cluster.wait(namespace, "--for=condition=Ready pod/limited", 60)?;
        resize(cluster, namespace, "300m", "96Mi")
    })
}

pub fn what_pods_use_is_served_as_metrics_server_reads_it(context: &mut Context) -> Result<()> {
    in_namespace(context, "figures", |cluster, namespace| {
        cluster.apply(namespace, POD)?;
        cluster.wait(namespace, "--for=condition=Ready pod/limited", 60)?;
        let node = cluster.value(namespace, "pod/limited", "{.spec.nodeName}")?;
        let page = cluster
            .kubectl(&format!(
                "get --raw /api/v1/nodes/{node}/proxy/metrics/resource"
            ))
            .success()?;
        let labels = format!(r#"{{container="app",namespace="{namespace}",pod="limited"}}"#);
        for figure in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
        ] {
            let value = figures(&page, &format!("{figure}{labels}"));
            ensure!(
                value.is_some_and(|value| value > 0.0),
                "{figure} is {value:?} in\n{page}"
            );
        }
        let config = cluster
            .kubectl(&format!("get --raw /api/v1/nodes/{node}/proxy/configz"))
            .success()?;
        let config: Value = serde_json::from_str(&config)?;
        let threshold = &config["kubeletconfig"]["evictionHard"]["memory.available"];
        ensure!(threshold == "100Mi", "the configuration told is {config}");
        ensure!(
            figures(&page, "node_memory_working_set_bytes").is_some_and(|bytes| bytes > 1e6),
            "the node uses nothing:\n{page}"
        );
        let summary = cluster
            .kubectl(&format!(
                "get --raw /api/v1/nodes/{node}/proxy/stats/summary"
            ))
            .success()?;
        let summary: Value = serde_json::from_str(&summary)?;
        let mut pods = summary["pods"].as_array().into_iter().flatten();
        ensure!(
            pods.any(|pod| pod["podRef"]["namespace"] == namespace
                && pod["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0)),
            "the summary lacks the pod: {summary}"
        );
        Ok(())
    })
}

/// A sample of Prometheus' text format.
fn figures(page: &str, sample: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(sample))?;
    line.split_whitespace().next()?.parse().ok()
}

pub fn limits_are_enforced_in_a_cgroup_that_the_site_gives(context: &mut Context) -> Result<()> {
    let Some(option) = in_cgroup(&context.testbed)? else {
        return Err(Unavailable("this machine has no cgroup v1 with a memory controller").into());
    };
    let options = format!("{SIZE} --nodelist=node1 {option}");
    let cluster = Cluster::start(&context.testbed, 1, &options)?;
    let shown = show(&context.testbed, &cluster);
    let ended = cluster.cancel();
    shown?;
    ended?;
    wait::until(
        "the job's cgroups to be removed",
        Duration::from_secs(30),
        || {
            let script = format!("find /sys/fs/cgroup/*/hpc -name 'hpk-{}*'", cluster.job);
            let left = context.testbed.on("root", "node1", script).success()?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        },
    )
}

fn show(testbed: &Testbed, cluster: &Cluster) -> Result<()> {
    ensure!(
        condition(cluster)? == "False",
        "the node says that limits are not enforced"
    );
    let namespace = cluster.namespace("limits")?;
    cluster.apply(&namespace, POD)?;
    cluster.apply(&namespace, GREEDY)?;
    cluster.apply(&namespace, WHOLE)?;
    cluster.wait(&namespace, "--for=condition=Ready pod/limited", 60)?;
    let files = "cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes";
    let limits = || {
        let read = format!("sh -c 'cd /sys/fs/cgroup && cat {files}'");
        let text = cluster.exec(&namespace, "limited", &read).success()?;
        Ok::<_, anyhow::Error>(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let seen = limits()?;
    ensure!(seen == "102 20000 67108864", "the container has {seen}");
    resize(cluster, &namespace, "300m", "96Mi")?;
    let seen = limits()?;
    ensure!(
        seen == "102 30000 100663296",
        "after the resize the container has {seen}"
    );
    ensure!(
        await_reason(cluster, &namespace, "greedy")? == "OOMKilled",
        "the greedy pod ended otherwise"
    );
    show_whole(cluster, &namespace)?;
    show_late(testbed, cluster, &namespace)?;
    // A kubelet that is killed in a resize finishes it when it is back, and restarts nothing.
    ask(cluster, &namespace, "250m", "80Mi")?;
    kill_and_await_return(testbed, "node1", KUBELET)?;
    await_resize(cluster, &namespace, "250m", "80Mi")?;
    let seen = limits()?;
    ensure!(
        seen == "102 25000 83886080",
        "after the kubelet's death in a resize the container has {seen}"
    );
    let uid = cluster.value(&namespace, "pod/limited", "{.metadata.uid}")?;
    let whole = testbed
        .on(
            "root",
            "node1",
            format!("cat $(find /sys/fs/cgroup/memory/hpc -name pod{uid})/memory.limit_in_bytes"),
        )
        .success()?;
    ensure!(whole.trim() == "83886080", "the pod as a whole has {whole}");
    cluster.remove_namespace(&namespace)
}

/// Why the pod's container ended.
fn await_reason(cluster: &Cluster, namespace: &str, pod: &str) -> Result<String> {
    let ended = "{.status.containerStatuses[0].state.terminated.reason}";
    wait::until(
        &format!("the end of {pod}"),
        Duration::from_secs(60),
        || {
            let reason = cluster.value(namespace, &format!("pod/{pod}"), ended)?;
            Ok(if reason.is_empty() {
                Err("it runs".to_owned())
            } else {
                Ok(reason)
            })
        },
    )
}

/// A container without limits sees those of its pod as its own, also after a resize.
fn show_whole(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.wait(namespace, "--for=condition=Ready pod/whole", 60)?;
    let files = "cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes";
    let seen = || {
        let read = format!("sh -c 'cd /sys/fs/cgroup && cat {files}'");
        let text = cluster.exec(namespace, "whole", &read).success()?;
        Ok::<_, anyhow::Error>(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let before = seen()?;
    ensure!(before == "30000 50331648", "the container has {before}");
    let patch = r#"{"spec":{"resources":{"limits":{"cpu":"400m","memory":"64Mi"}}}}"#;
    cluster
        .kubectl(&format!(
            "-n {namespace} patch pod whole --subresource resize -p '{patch}'"
        ))
        .success()?;
    wait::until(
        "the pod's new limits in its container",
        Duration::from_secs(60),
        || {
            let seen = seen()?;
            Ok(if seen == "40000 67108864" {
                Ok(())
            } else {
                Err(seen)
            })
        },
    )
}

/// A kill for want of memory that comes while no kubelet listens is told as one all the same.
fn show_late(testbed: &Testbed, cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.apply(namespace, LATE)?;
    cluster.wait(namespace, "--for=condition=Ready pod/late", 60)?;
    let kubelets = pids(testbed, "node1", KUBELET)?.join(" ");
    testbed
        .on("root", "node1", format!("kill -STOP {kubelets}"))
        .success()?;
    testbed.on("hpc", "node1", "touch ~/late/go").success()?;
    wait::until("the late pod's kill", Duration::from_secs(30), || {
        let left = [
            pids(testbed, "node1", "^sh -c until . -e /flag/go")?,
            pids(testbed, "node1", "^tail /dev/zero")?,
        ]
        .concat();
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(left.join(" "))
        })
    })?;
    kill_and_await_return(testbed, "node1", KUBELET)?;
    let reason = await_reason(cluster, namespace, "late")?;
    testbed.on("hpc", "node1", "rm -r ~/late").success()?;
    ensure!(reason == "OOMKilled", "the late pod ended by {reason}");
    Ok(())
}

/// Of the first node, that limits are not enforced.
fn condition(cluster: &Cluster) -> Result<String> {
    let path = "{.items[0].status.conditions[?(@.type==\"LimitsNotEnforced\")].status}";
    cluster
        .kubectl(&format!("get nodes -o jsonpath='{path}'"))
        .success()
}

/// Gives pod `limited` other limits, and waits until it has them, without a restart.
fn resize(cluster: &Cluster, namespace: &str, cpu: &str, memory: &str) -> Result<()> {
    ask(cluster, namespace, cpu, memory)?;
    await_resize(cluster, namespace, cpu, memory)
}

fn ask(cluster: &Cluster, namespace: &str, cpu: &str, memory: &str) -> Result<()> {
    let patch = format!(
        r#"{{"spec":{{"containers":[{{"name":"app","resources":{{"limits":{{"cpu":"{cpu}","memory":"{memory}"}}}}}}]}}}}"#
    );
    cluster
        .kubectl(&format!(
            "-n {namespace} patch pod limited --subresource resize -p '{patch}'"
        ))
        .success()
        .map(drop)
}

fn await_resize(cluster: &Cluster, namespace: &str, cpu: &str, memory: &str) -> Result<()> {
    let status = "{.status.containerStatuses[0].resources.limits.cpu} \
                  {.status.containerStatuses[0].resources.limits.memory} \
                  {.status.containerStatuses[0].restartCount} \
                  {.status.conditions[?(@.type==\"PodResizeInProgress\")].type}";
    let wanted = format!("{cpu} {memory} 0");
    wait::until("the resize", Duration::from_secs(60), || {
        let seen = cluster.value(namespace, "pod/limited", status)?;
        Ok(if seen.trim() == wanted {
            Ok(())
        } else {
            Err(seen)
        })
    })
}
