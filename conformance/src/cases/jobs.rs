//! The Slurm job's life: what it says, and what it leaves.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Context, SIZE};
use crate::cluster::{self, Cluster, GONE};
use crate::testbed::Testbed;
use crate::wait;

pub fn three_nodes_are_ready_and_the_job_says_how_to_use_them(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    let nodes = cluster
        .kubectl_of_the_user("get nodes --no-headers")
        .success()?;
    let ready = nodes
        .lines()
        .filter(|line| line.contains(" Ready "))
        .count();
    ensure!(
        ready == 3 && nodes.lines().count() == 3,
        "kubectl get nodes:\n{nodes}"
    );
    let log = cluster::log(&context.testbed, "hpc", &cluster.job)?;
    for words in [
        "CPU",
        "memory",
        "Ready in ",
        "export KUBECONFIG=",
        "ssh -L",
        "ends",
    ] {
        ensure!(
            log.contains(words),
            "the job does not say {words:?}:\n{log}"
        );
    }
    println!("sbatch → 3 nodes Ready: {:.1} s", cluster.ready_after);
    Ok(())
}

/// Everything that could be left of a job, a line each. A process is of the job when its mounts
/// are: another cluster's process list may well contain the number.
fn left(testbed: &Testbed, job: &str) -> Result<String> {
    let mut found = String::new();
    for host in ["node1", "node2", "node3"] {
        let script = format!(
            "for p in /proc/[0-9]*; do \
               {{ grep -qs '/hpk-[0-9]*-{job}-[0-9a-f]*[/ ]' $p/mountinfo || tr '\\0' ' ' 2>/dev/null <$p/cmdline | grep -q 'hpk-bubbl[e] {job} '; }} || continue; \
               echo \"process ${{p#/proc/}} $(tr '\\0' ' ' 2>/dev/null <$p/cmdline | cut -c1-150)\"; done; \
             grep -e 'hpk-[0-9]*-{job}-' /proc/mounts | sed 's/^/mount /'; \
             ls -d /tmp/hpk-*-{job}-* /run/hpk* /dev/shm/* /home/*/.apptainer/instances/app/*/*/bubble*-{job} 2>/dev/null | sed 's/^/file /'; true"
        );
        for line in testbed.on("root", host, script).success()?.lines() {
            found.push_str(&format!("{host}: {line}\n"));
        }
    }
    Ok(found)
}

/// Waits until nothing of the job is left on any host.
pub fn gone(testbed: &Testbed, job: &str) -> Result<()> {
    wait::until(
        &format!("nothing to be left of job {job}"),
        Duration::from_secs(GONE),
        || {
            let found = left(testbed, job)?;
            Ok(if found.is_empty() { Ok(()) } else { Err(found) })
        },
    )
}

/// No process or folder of hpc on a host, known for the job's or not; but another job of theirs may run,
/// such as a cluster that somebody looks at.
fn nothing_of_hpc_runs(testbed: &Testbed) -> Result<()> {
    let others = testbed
        .on("hpc", "login", "squeue -h -u hpc -o %i")
        .success()?;
    if !others.is_empty() {
        return Ok(());
    }
    let script = "pgrep -u hpc -a || true; ls -d /tmp/hpk-* 2>/dev/null || true";
    let any = testbed.on("root", "node1", script).success()?;
    ensure!(any.is_empty(), "hpc still has on node1:\n{any}");
    Ok(())
}

pub fn a_cancelled_job_leaves_nothing_behind(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    cluster.apply(
        "default",
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: left}
spec:
  replicas: 6
  selector: {matchLabels: {app: left}}
  template:
    metadata: {labels: {app: left}}
    spec:
      containers:
      - {name: left, image: "busybox:1.37", command: [sh, -c, "trap : TERM; while :; do sleep 1; done"]}
"#,
    )?;
    cluster.roll_out("default", "deployment/left", 60)?;
    let start = Instant::now();
    context.finish();
    cluster::await_end(&context.testbed, &cluster.job)?;
    gone(&context.testbed, &cluster.job)?;
    ensure!(
        start.elapsed() < Duration::from_secs(GONE + 5),
        "the job took {:?} to leave",
        start.elapsed()
    );
    nothing_of_hpc_runs(&context.testbed)?;
    let kubeconfig = context
        .testbed
        .on("hpc", "login", "cat ~/.hpk/kubeconfig 2>/dev/null || true")
        .success()?;
    ensure!(
        !kubeconfig.contains(&format!("hpk-{}", cluster.job)),
        "the kubeconfig still names the cluster"
    );
    Ok(())
}

/// Runs a pod on the cluster, ends it, and looks for what is left.
pub fn is_whole(testbed: &Testbed, cluster: &Cluster) -> Result<()> {
    let result = (|| {
        cluster
            .kubectl("run hello --image=busybox:1.37 --restart=Never -- echo hello")
            .success()?;
        cluster.wait(
            "default",
            "--for=jsonpath='{.status.phase}'=Succeeded pod/hello",
            60,
        )?;
        let log = cluster.kubectl("logs hello").success()?;
        ensure!(log == "hello\n", "the pod wrote {log:?}");
        Ok(())
    })();
    cluster.cancel()?;
    result?;
    gone(testbed, &cluster.job)
}

pub fn a_single_node_is_a_cluster(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    is_whole(testbed, &Cluster::start(testbed, 1, SIZE)?)
}

pub fn one_cpu_is_enough_to_start(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    let options = "--cpus-per-task=1 --mem=3G --time=10";
    is_whole(testbed, &Cluster::start(testbed, 1, options)?)
}

pub fn what_a_kill_9_of_all_leaves_goes_with_the_next_job(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let killed = Cluster::start(&testbed, 1, SIZE)?;
    let script = format!("squeue -h -j {} -o %N", killed.job);
    let host = testbed.on("hpc", "login", script).success()?;
    let host = host.trim();
    // The kill ends its own shell too, so it has no exit code to look at.
    testbed.on("hpc", host, "kill -9 -1").output()?;
    cluster::await_end(&testbed, &killed.job)?;
    let remains = left(&testbed, &killed.job)?;
    ensure!(
        remains.contains("file /tmp/hpk-1000-"),
        "nothing is left that the next job could remove: {remains:?}"
    );
    let next = Cluster::start(&testbed, 1, &format!("{SIZE} --nodelist={host}"))?;
    let removed = left(&testbed, &killed.job);
    next.cancel()?;
    let remains = removed?;
    ensure!(
        remains.is_empty(),
        "still left of job {}:\n{remains}",
        killed.job
    );
    gone(&testbed, &next.job)
}
