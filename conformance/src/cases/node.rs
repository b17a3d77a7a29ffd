//! What a node does for itself: pods that it can't keep, pods of its own folder, images that nobody uses, its end. On a
//! cluster of one node whose kubelet has shorter periods than it would have; the last case ends it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::faults::{KUBELET, kill_and_await_return};
use super::{Context, SIZE};
use crate::cluster::Cluster;
use crate::testbed::Testbed;
use crate::wait;

/// Where this cluster has its images and manifests, so that no other cluster's are touched.
const STORE: &str = "/home/hpc/own-node/store";
const MANIFESTS: &str = "/home/hpc/own-node/manifests";

/// Its node-local disk, small enough to be filled.
const DISK: &str = "/mnt/own-node";

/// Makes that disk, and starts the cluster.
pub fn start(testbed: &Testbed) -> Result<Cluster> {
    let make = format!(
        "mkdir -p {DISK} && {{ mountpoint -q {DISK} || mount -t tmpfs -o size=1300m,uid=1000,gid=1000,mode=0700 tmpfs {DISK}; }}"
    );
    testbed.on("root", "node3", make).success()?;
    Cluster::start(testbed, 1, &options())
}

/// Undoes `start`.
pub fn end(testbed: &Testbed, cluster: &Cluster) -> Result<()> {
    cluster.end()?;
    let remove = format!("umount {DISK} && rmdir {DISK}");
    testbed.on("root", "node3", remove).success().map(drop)
}

/// sbatch's options of that cluster.
fn options() -> String {
    let kubelet = [
        &format!("--pod-manifest-path={MANIFESTS}"),
        "--file-check-frequency=1s",
        "--capacity=pods=12",
        "--minimum-image-ttl-duration=2s",
        "--image-maximum-gc-age=3s",
        "--eviction-hard=memory.available<1800Mi",
        "--eviction-hard=nodefs.available<30%",
        "--eviction-pressure-transition-period=15s",
    ];
    format!(
        "{SIZE} --nodelist=node3 --export='ALL,HPK_STORE={STORE},HPK_LOCAL={DISK},HPK_KUBELET_OPTIONS={}'",
        kubelet.join(" ")
    )
}

const TWELVE: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: full}
spec:
  replicas: 12
  selector: {matchLabels: {app: full}}
  template:
    metadata: {labels: {app: full}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: app, image: "busybox:1.37", command: [sleep, "1000"]}
"#;

pub fn a_full_node_takes_a_pod_for_each_that_ends(context: &mut Context) -> Result<()> {
    let cluster = context.own_node()?;
    let namespace = cluster.namespace("full")?;
    cluster.apply(&namespace, TWELVE)?;
    cluster.roll_out(&namespace, "deployment/full", 60)?;
    let pods = || {
        cluster
            .kubectl(&format!("-n {namespace} get pods -o name"))
            .success()
    };
    let before = pods()?;
    let some: Vec<&str> = before.lines().take(6).collect();
    // Waits until all six are gone.
    cluster
        .kubectl(&format!("-n {namespace} delete {}", some.join(" ")))
        .limit(60)
        .success()?;
    cluster.roll_out(&namespace, "deployment/full", 60)?;
    let refused = cluster
        .kubectl(&format!(
            "-n {namespace} get pods --field-selector=status.phase=Failed -o wide"
        ))
        .success()?;
    ensure!(refused.is_empty(), "the node refused pods:\n{refused}");
    cluster
        .kubectl(&format!("-n {namespace} delete deployment full"))
        .success()?;
    cluster.remove_namespace(&namespace)
}

/// Writes more than its volume, or its container, may have.
const WRITERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "head -c 8m /dev/zero >/data/f; sleep 1000"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 4Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer}
spec:
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "head -c 8m /dev/zero >/f; sleep 1000"]
    resources: {limits: {ephemeral-storage: 4Mi}}
"#;

pub fn a_pod_that_writes_more_than_it_may_is_evicted(context: &mut Context) -> Result<()> {
    let cluster = context.own_node()?;
    let namespace = cluster.namespace("writers")?;
    cluster.apply(&namespace, WRITERS)?;
    for (pod, words) in [
        (
            "volume",
            "Usage of EmptyDir volume \"data\" exceeds the limit \"4Mi\". ",
        ),
        (
            "layer",
            "Pod ephemeral local storage usage exceeds the total limit of containers 4194304. ",
        ),
    ] {
        await_eviction(&cluster, &namespace, pod, words)?;
    }
    cluster.remove_namespace(&namespace)
}

/// Waits until the pod has failed as evicted pods do, with these words.
fn await_eviction(cluster: &Cluster, namespace: &str, pod: &str, words: &str) -> Result<()> {
    wait::until(
        &format!("pod {pod} to be evicted"),
        Duration::from_secs(60),
        || {
            let status = &cluster.json(&format!("-n {namespace} get pod {pod}"))?["status"];
            let is = |name: &str, value: &str| status[name] == *value;
            let target = condition(status, "DisruptionTarget");
            let told = status["message"]
                .as_str()
                .is_some_and(|m| m.starts_with(words));
            let done = is("phase", "Failed")
                && is("reason", "Evicted")
                && told
                && target["reason"] == "TerminationByKubelet";
            Ok(if done {
                Ok(())
            } else {
                Err(status.to_string())
            })
        },
    )
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    all.find(|condition| condition["type"] == kind)
        .unwrap_or(&Value::Null)
}

/// One takes most of the node's memory, and has asked for none; the other is modest.
const HUNGRY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sleep, "1000"]
    resources: {requests: {memory: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "head -c 1100m /dev/zero | tail | sleep 1000"]
"#;

pub fn a_node_short_of_memory_evicts_the_pod_that_took_it_and_says_so(
    context: &mut Context,
) -> Result<()> {
    let cluster = context.own_node()?;
    let namespace = cluster.namespace("hungry")?;
    cluster.apply(&namespace, HUNGRY)?;
    let words = "The node was low on resource: memory. Threshold quantity: 1843200Ki, available: ";
    await_eviction(&cluster, &namespace, "hungry", words)?;
    await_condition(&cluster, "MemoryPressure", "True")?;
    await_condition(&cluster, "MemoryPressure", "False")?;
    let phase = cluster.value(&namespace, "pod/modest", "{.status.phase}")?;
    ensure!(phase == "Running", "the modest pod is {phase}");
    cluster.remove_namespace(&namespace)
}

fn await_condition(cluster: &Cluster, kind: &str, wanted: &str) -> Result<()> {
    wait::until(
        &format!("the node's condition {kind} to be {wanted}"),
        Duration::from_secs(60),
        || {
            let status = &cluster.json("get node node3")?["status"];
            let seen = condition(status, kind);
            let is = seen["status"] == *wanted;
            Ok(if is { Ok(()) } else { Err(seen.to_string()) })
        },
    )
}

/// One fills most of the disk, and has asked for none of it; the other writes little.
const WRITER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "head -c 1m /dev/zero >/f; exec sleep 1000"]
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "head -c 900m /dev/zero >/data/f; sleep 1000"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#;

/// Bound by its author: no scheduler looks at the node's taints.
const BOUND: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: bound}
spec:
  nodeName: node3
  containers:
  - {name: app, image: "busybox:1.37", command: [sleep, "1000"]}
"#;

pub fn a_node_short_of_disk_evicts_the_pod_that_filled_it_and_takes_none_meanwhile(
    context: &mut Context,
) -> Result<()> {
    let cluster = context.own_node()?;
    let namespace = cluster.namespace("writer")?;
    cluster.apply(&namespace, WRITER)?;
    let words = "The node was low on resource: ephemeral-storage. Threshold quantity: ";
    await_eviction(&cluster, &namespace, "writer", words)?;
    await_condition(&cluster, "DiskPressure", "True")?;
    cluster.apply(&namespace, BOUND)?;
    wait::until(
        "a pod that is bound to the node all the same to be refused",
        Duration::from_secs(30),
        || {
            let status = &cluster.json(&format!("-n {namespace} get pod bound"))?["status"];
            let told = status["message"].as_str().unwrap_or_default();
            let refused = status["reason"] == "Evicted" && told.contains("[DiskPressure]");
            Ok(if refused {
                Ok(())
            } else {
                Err(status.to_string())
            })
        },
    )?;
    let taints = || cluster.value("default", "node/node3", "{.spec.taints[*].key}");
    wait::until(
        "the node to have the taint of its disk",
        Duration::from_secs(30),
        || {
            let seen = taints()?;
            let has = seen.contains("node.kubernetes.io/disk-pressure");
            Ok(if has { Ok(()) } else { Err(seen) })
        },
    )?;
    await_condition(&cluster, "DiskPressure", "False")?;
    let phase = cluster.value(&namespace, "pod/modest", "{.status.phase}")?;
    ensure!(phase == "Running", "the modest pod is {phase}");
    cluster.remove_namespace(&namespace)
}

const STATIC: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: own, labels: {app: own}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "echo runs; trap exit TERM; while :; do sleep 0.2; done"]
"#;

pub fn a_static_pod_runs_on_when_its_mirror_is_deleted_and_ends_with_its_file(
    context: &mut Context,
) -> Result<()> {
    let cluster = context.own_node()?;
    let testbed = &context.testbed;
    on_home(
        testbed,
        &format!("mkdir -p {MANIFESTS} && cat >{MANIFESTS}/own.yaml"),
        STATIC,
    )?;
    let ready = "--for=condition=Ready pod/own-node3";
    wait_for_mirror(&cluster, None)?;
    cluster.wait("default", ready, 60)?;
    let first = ids(&cluster)?;
    let logs = cluster.kubectl("logs own-node3").success()?;
    ensure!(logs.trim() == "runs", "the static pod's log is {logs:?}");
    cluster
        .kubectl("delete pod own-node3 --wait=false")
        .success()?;
    wait_for_mirror(&cluster, Some(&first.0))?;
    cluster.wait("default", ready, 60)?;
    let second = ids(&cluster)?;
    ensure!(
        first.1 == second.1,
        "another container runs since the mirror was deleted: {first:?}, {second:?}"
    );
    kill_and_await_return(testbed, "node3", KUBELET)?;
    on_home(testbed, &format!("rm {MANIFESTS}/own.yaml"), "")?;
    cluster.wait("default", "--for=delete pod/own-node3", 60)
}

fn on_home(testbed: &Testbed, command: &str, input: &str) -> Result<()> {
    testbed
        .on("hpc", "login", command)
        .input(input)
        .success()
        .map(drop)
}

/// Waits for a mirror pod other than the one of this uid.
fn wait_for_mirror(cluster: &Cluster, other_than: Option<&str>) -> Result<()> {
    wait::until("a mirror pod", Duration::from_secs(60), || {
        let uid = cluster
            .kubectl("get pod own-node3 --ignore-not-found -o jsonpath='{.metadata.uid}'")
            .success()?;
        let is_new = !uid.is_empty() && other_than != Some(uid.as_str());
        Ok(if is_new { Ok(()) } else { Err(uid) })
    })
}

/// Uid of the mirror, and id of the container.
fn ids(cluster: &Cluster) -> Result<(String, String)> {
    let pod = cluster.json("get pod own-node3")?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no id");
    Ok((
        text(&pod["metadata"]["uid"])?,
        text(&pod["status"]["containerStatuses"][0]["containerID"])?,
    ))
}

const SHORT: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: short}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: "busybox:1.37", command: [sleep, "1000"]}
"#;

pub fn an_image_that_nobody_uses_leaves_the_store_and_the_nodes_list(
    context: &mut Context,
) -> Result<()> {
    let cluster = context.own_node()?;
    let namespace = cluster.namespace("images")?;
    cluster.apply(&namespace, SHORT)?;
    cluster.wait(&namespace, "--for=condition=Ready pod/short", 60)?;
    let listed = |wanted: bool| {
        wait::until(
            &format!("the node's list of images to have busybox: {wanted}"),
            Duration::from_secs(60),
            || {
                let images = cluster.value("default", "node/node3", "{.status.images}")?;
                let has = images.contains("busybox:1.37");
                Ok(if has == wanted { Ok(()) } else { Err(images) })
            },
        )
    };
    listed(true)?;
    let squashed = || {
        let count = format!("ls {STORE} | grep -c sqfs; true");
        context.testbed.on("hpc", "login", count).success()
    };
    let kept = squashed()?;
    ensure!(
        kept.trim() == "1",
        "the store has {kept} images while one is used"
    );
    cluster
        .kubectl(&format!("-n {namespace} delete pod short"))
        .success()?;
    listed(false)?;
    let left = squashed()?;
    ensure!(left.trim() == "0", "the store still has {left} images");
    cluster.remove_namespace(&namespace)
}

/// Its hook, and its program at SIGTERM, write to the home.
const HOOKED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "trap 'echo ended >>/home/told; exit' TERM; while :; do sleep 0.2; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "sleep 1; echo hook >>/home/told"]}}}
    volumeMounts: [{name: home, mountPath: /home}]
  volumes: [{name: home, hostPath: {path: /home/hpc/own-node, type: Directory}}]
"#;

/// The batch script is told ahead of the job's end. (At a plain scancel Slurm signals every process of a job itself.)
pub fn before_the_jobs_end_pods_have_their_hooks_and_their_grace(
    context: &mut Context,
) -> Result<()> {
    let cluster = context.own_node()?;
    let testbed = context.testbed.clone();
    on_home(&testbed, "mkdir -p ~/own-node && rm -f ~/own-node/told", "")?;
    cluster.apply("default", HOOKED)?;
    cluster.wait("default", "--for=condition=Ready pod/hooked", 60)?;
    testbed
        .on(
            "hpc",
            "login",
            format!("scancel --batch --signal=TERM {}", cluster.job),
        )
        .success()?;
    super::jobs::gone(&testbed, &cluster.job)?;
    let told = testbed
        .on("hpc", "login", "cat ~/own-node/told; rm -r ~/own-node")
        .success()?;
    ensure!(told == "hook\nended\n", "at its end the pod wrote {told:?}");
    context.end_own_node()
}
