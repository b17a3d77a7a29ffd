//! GPUs that Slurm granted, as an extended resource. There is no GPU here: Slurm manages device nodes by that name on one
//! host (testbed.d/slurm.sh), and the nodes and the driver of NVIDIA's are made up there for a case and go with it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::faults::{KUBELET, kill_and_await_return};
use super::refusals::event;
use super::{Context, SIZE};
use crate::cluster::{self, Cluster};
use crate::testbed::Testbed;
use crate::wait;

const HOST: &str = "node2";
const RESOURCE: &str = "nvidia.com/gpu";

/// Four GPUs (nodes of the FUSE device), a library of Debian's under the name of the driver's, and its program.
const MAKE: &str = r#"
set -eu
for node in nvidiactl nvidia-uvm nvidia0 nvidia1 nvidia2 nvidia3; do mknod -m 666 /dev/$node c 10 229; done
# ldconfig goes by the name in the file, which this one's is as long as.
library=$(ldconfig -p | awk '/liblzma\.so\.5 .*64/ {print $NF; exit}')
LC_ALL=C sed 's/liblzma\.so\.5/libcuda.so.1/g' "$library" >/usr/local/lib/libcuda.so.1.9
printf '#!/bin/sh\necho the driver of the host\n' >/usr/local/bin/nvidia-smi
chmod +x /usr/local/bin/nvidia-smi
ldconfig
sha256sum </usr/local/lib/libcuda.so.1.9
"#;
const UNDO: &str =
    "rm -f /dev/nvidia* /usr/local/lib/libcuda.so.1* /usr/local/bin/nvidia-smi; ldconfig";

/// Runs `body` where there are GPUs; it is given the sum of the driver's library.
fn with_gpus(testbed: &Testbed, body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let made = testbed.on("root", HOST, MAKE).success();
    let result = made.and_then(|sum| body(sum.trim()));
    let undone = testbed.on("root", HOST, UNDO).success();
    result?;
    undone.map(drop)
}

/// Runs `body` on a cluster of that host alone, whose sbatch gets `options`, and ends it.
fn on_cluster(
    testbed: &Testbed,
    options: &str,
    body: impl FnOnce(&Cluster, &str) -> Result<()>,
) -> Result<()> {
    let options = format!("{SIZE} --nodelist={HOST} {options}");
    let cluster = Cluster::start(testbed, 1, &options)?;
    let result = cluster
        .namespace("gpus")
        .and_then(|namespace| body(&cluster, &namespace));
    let ended = cluster.end();
    result?;
    ended
}

/// How many the node offers; empty if it doesn't know the resource.
fn offered(cluster: &Cluster) -> Result<String> {
    let path = r"{.items[0].status.allocatable.nvidia\.com/gpu}";
    cluster
        .kubectl(&format!("get nodes -o jsonpath='{path}'"))
        .success()
}

/// A pod with one GPU that runs until /tmp/done is there. `more` goes into its spec, `container` into its container.
fn pod(name: &str, more: &str, container: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  {more}
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "trap exit TERM; until [ -e /tmp/done ]; do sleep 0.2; done"]
    resources: {{limits: {{{RESOURCE}: "1"}}}}
    {container}
"#
    )
}

/// The GPUs of a pod's container: what of their nodes it has, but for what all share.
fn has(cluster: &Cluster, namespace: &str, pod: &str) -> Result<String> {
    let list = "sh -c 'cd /dev && for n in nvidia[0-9]*; do : <>$n && echo $n; done'";
    let said = cluster.exec(namespace, pod, list).success()?;
    Ok(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Another job of the user's takes one of the host's GPUs.
fn hold_one(testbed: &Testbed) -> Result<String> {
    let submit = format!(
        "sbatch --parsable --output=/dev/null --nodelist={HOST} --cpus-per-task=1 --mem=100M --gres=gpu:1 --wrap='sleep 900'"
    );
    let job = testbed.on("hpc", "login", submit).success()?;
    let job = job.trim().to_owned();
    wait::until(
        &format!("job {job} to run"),
        Duration::from_secs(30),
        || {
            let state = cluster::state(testbed, &job)?;
            Ok(if state == "RUNNING" {
                Ok(())
            } else {
                Err(state)
            })
        },
    )?;
    Ok(job)
}

pub fn each_pod_that_asks_has_a_gpu_of_its_own_of_those_that_slurm_granted(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    with_gpus(&testbed, |library| {
        // As ConstrainDevices has it: of the four, the job may open those two that it is granted, which are not the
        // first.
        let other = hold_one(&testbed)?;
        let constrain = "chmod 600 /dev/nvidia0 /dev/nvidia3";
        testbed.on("root", HOST, constrain).success()?;
        let result = on_cluster(&testbed, "--gres=gpu:2", |cluster, namespace| {
            show(&testbed, cluster, namespace, library)
        });
        let ended = testbed
            .on("hpc", "login", format!("scancel {other}"))
            .success();
        result?;
        ended?;
        cluster::await_end(&testbed, &other)
    })
}

fn show(testbed: &Testbed, cluster: &Cluster, namespace: &str, library: &str) -> Result<()> {
    let count = offered(cluster)?;
    ensure!(count == "2", "the node offers {count:?} of {RESOURCE}");
    let log = cluster::log(testbed, "hpc", &cluster.job)?;
    let told = "GPUs for pods: nvidia.com/gpu=/dev/nvidia1 nvidia.com/gpu=/dev/nvidia2";
    ensure!(log.contains(told), "the job doesn't say {told:?}:\n{log}");

    cluster.apply(namespace, &pod("a", "", ""))?;
    cluster.apply(namespace, &pod("b", "restartPolicy: Never", ""))?;
    cluster.wait(namespace, "--for=condition=Ready pod/a pod/b", 90)?;
    let (a, b) = (has(cluster, namespace, "a")?, has(cluster, namespace, "b")?);
    ensure!(
        BTreeSet::from([a.as_str(), b.as_str()]) == BTreeSet::from(["nvidia1", "nvidia2"]),
        "a has {a:?} and b has {b:?}"
    );
    has_the_driver(cluster, namespace, library)?;

    // With an init container, whose GPU is used again.
    let init = format!(
        r#"initContainers: [{{name: first, image: "busybox:1.37", command: [sh, -c, "ls /dev/nvidia[0-9]*"],
    resources: {{limits: {{{RESOURCE}: "1"}}}}}}]"#
    );
    cluster.apply(namespace, &pod("c", &init, ""))?;
    let words = ["FailedScheduling", "Insufficient nvidia.com/gpu"];
    event(cluster, namespace, "c", &words)?;
    is_refused_by_the_node(cluster, namespace, "d")?;

    let runs = |pod: &str| {
        let path = "{.status.containerStatuses[0].containerID}";
        cluster.value(namespace, &format!("pod/{pod}"), path)
    };
    let before = (runs("a")?, runs("b")?);
    kill_and_await_return(testbed, HOST, KUBELET)?;
    // By the kubelet that is back, which must know what the others have.
    is_refused_by_the_node(cluster, namespace, "e")?;
    let after = (runs("a")?, runs("b")?);
    ensure!(before == after, "{before:?} became {after:?}");
    // A container that runs again has what it had.
    // It may take the exec along, so that has no exit code to look at.
    cluster.exec(namespace, "a", "kill -TERM 1").output()?;
    cluster.wait(
        namespace,
        "--for=jsonpath='{.status.containerStatuses[0].restartCount}'=1 pod/a",
        60,
    )?;
    cluster.wait(namespace, "--for=condition=Ready pod/a", 60)?;
    let again = has(cluster, namespace, "a")?;
    ensure!(
        again == a,
        "after its restart a has {again:?} and not {a:?}"
    );

    cluster.exec(namespace, "b", "touch /tmp/done").success()?;
    cluster.wait(namespace, "--for=condition=Ready pod/c", 90)?;
    let c = has(cluster, namespace, "c")?;
    let first = cluster
        .kubectl(&format!("-n {namespace} logs c -c first"))
        .success()?;
    ensure!(
        c == b && first.trim() == format!("/dev/{b}"),
        "c has {c:?}, its init container had {first:?}, and b had {b:?}"
    );
    what_is_not_here_is_told(cluster, namespace)
}

/// Pod a, of which all is asked that one with a GPU may expect.
fn has_the_driver(cluster: &Cluster, namespace: &str, library: &str) -> Result<()> {
    let look = "sh -c 'sha256sum </.singularity.d/libs/libcuda.so.1; nvidia-smi; \
                ls /dev/nvidiactl /dev/nvidia-uvm; env | grep VISIBLE || echo none visible'";
    let said = cluster.exec(namespace, "a", look).success()?;
    let want = format!(
        "{library}\nthe driver of the host\n/dev/nvidia-uvm\n/dev/nvidiactl\nnone visible\n"
    );
    ensure!(said == want, "a says {said:?} and not {want:?}");
    let without = r#"
apiVersion: v1
kind: Pod
metadata: {name: without}
spec:
  restartPolicy: Never
  containers:
  - {name: app, image: "busybox:1.37", command: [sh, -c, "ls /dev/nvidia* /.singularity.d 2>&1 | wc -l; env | grep -c VISIBLE"]}
"#;
    cluster.apply(namespace, without)?;
    let ended =
        "--for=jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}'=1 pod/without";
    cluster.wait(namespace, ended, 60)?;
    let said = cluster
        .kubectl(&format!("-n {namespace} logs without"))
        .success()?;
    ensure!(said == "2\n0\n", "a pod that asks for none says {said:?}");
    Ok(())
}

/// A pod that is bound past the scheduler has no other's GPU.
fn is_refused_by_the_node(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    cluster.apply(namespace, &pod(name, &format!("nodeName: {HOST}"), ""))?;
    let failed = format!("--for=jsonpath='{{.status.phase}}'=Failed pod/{name}");
    cluster.wait(namespace, &failed, 60)?;
    let status = cluster.json(&format!("-n {namespace} get pod {name}"))?;
    let text = |field: &str| {
        status["status"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (reason, message) = (text("reason"), text("message"));
    ensure!(
        reason == "UnexpectedAdmissionError"
            && message.contains("nvidia.com/gpu. Requested: 1, Available: 0"),
        "{name} failed by {reason}: {message}"
    );
    Ok(())
}

/// A resource that no node has, and both ways to ask for GPUs at once.
fn what_is_not_here_is_told(cluster: &Cluster, namespace: &str) -> Result<()> {
    let bound = format!("nodeName: {HOST}");
    let other = pod("other", &bound, "").replace(RESOURCE, "fpga.test/card");
    cluster.apply(namespace, &other)?;
    let words = ["NoSuchDevice", "fpga.test/card"];
    event(cluster, namespace, "other", &words)?;
    let both = pod("both", &bound, "").replace(
        "{name: both}",
        "{name: both, annotations: {slurm.hpk.io/gpu: nv}}",
    );
    cluster.apply(namespace, &both)?;
    let words = ["UnsupportedByHPK", "slurm.hpk.io/gpu"];
    event(cluster, namespace, "both", &words)
}

pub fn gpus_that_slurm_did_not_grant_are_not_offered_unless_the_user_names_them(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    with_gpus(&testbed, |_| {
        on_cluster(&testbed, "", |cluster, namespace| {
            let count = offered(cluster)?;
            ensure!(count.is_empty(), "without a grant there are {count:?}");
            cluster.apply(namespace, &pod("a", "", ""))?;
            let words = ["FailedScheduling", "Insufficient nvidia.com/gpu"];
            event(cluster, namespace, "a", &words)
        })
        .context("without a grant")?;
        on_cluster(&testbed, "--export=ALL,HPK_GPUS=3", |cluster, namespace| {
            let count = offered(cluster)?;
            ensure!(count == "1", "the node offers {count:?}");
            cluster.apply(namespace, &pod("a", "", ""))?;
            cluster.wait(namespace, "--for=condition=Ready pod/a", 90)?;
            let a = has(cluster, namespace, "a")?;
            ensure!(a == "nvidia3", "a has {a:?}");
            Ok(())
        })
        .context("named in HPK_GPUS")
    })
}
