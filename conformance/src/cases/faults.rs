//! Killed processes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Context, SIZE, in_namespace};
use crate::cluster::Cluster;
use crate::testbed::Testbed;
use crate::wait;

/// Twenty pods on one node, each counting aloud ten times a second.
const COUNTERS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: counters}
spec:
  replicas: 20
  selector: {matchLabels: {app: counters}}
  template:
    metadata: {labels: {app: counters}}
    spec:
      nodeName: NODE
      terminationGracePeriodSeconds: 1
      containers:
      - name: counter
        image: busybox:1.37
        command: [sh, -c, "n=0; while :; do n=$((n + 1)); echo $n; usleep 100000; done"]
"#;

/// Process ids of hpc's processes on `host` whose command line matches `pattern`.
pub fn pids(testbed: &Testbed, host: &str, pattern: &str) -> Result<Vec<String>> {
    let output = testbed
        .on(
            "root",
            host,
            format!("pgrep -u hpc -f -- '{pattern}' || true"),
        )
        .success()?;
    Ok(output.lines().map(str::to_owned).collect())
}

/// The kubelet's command line, for pgrep.
pub const KUBELET: &str = "^(/usr/local/bin/)?hpk-kubelet ";

/// Kills the one process that matches, and waits until another has taken its place.
pub fn kill_and_await_return(testbed: &Testbed, host: &str, pattern: &str) -> Result<()> {
    let before = pids(testbed, host, pattern)?;
    ensure!(
        !before.is_empty(),
        "no process matches {pattern:?} on {host}"
    );
    testbed
        .on("root", host, format!("kill -9 {}", before.join(" ")))
        .success()?;
    wait::until(
        &format!("{pattern:?} to come back on {host}"),
        Duration::from_secs(60),
        || {
            let now = pids(testbed, host, pattern)?;
            let fresh = !now.is_empty() && now.iter().all(|pid| !before.contains(pid));
            Ok(if fresh {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            })
        },
    )
}

/// The run of a pod's container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ran {
    pub pod: String,
    id: String,
    restarts: u64,
}

/// Of all pods of one container, by name.
pub fn ran(cluster: &Cluster, namespace: &str) -> Result<Vec<Ran>> {
    let pods = cluster.json(&format!("-n {namespace} get pods"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<Ran> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            Ran {
                pod: text(&pod["metadata"]["name"]),
                id: text(&status["containerID"]),
                restarts: status["restartCount"].as_u64().unwrap_or(u64::MAX),
            }
        })
        .collect();
    all.sort();
    Ok(all)
}

fn node_ready(cluster: &Cluster, node: &str) -> Result<bool> {
    let nodes: Value = cluster.json(&format!("get node {node}"))?;
    Ok(nodes["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
}

pub fn twenty_pods_outlive_a_killed_kubelet(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "outlive", |cluster, namespace| {
        let node = "node2";
        cluster.apply(namespace, &COUNTERS.replace("NODE", node))?;
        cluster.roll_out(namespace, "deployment/counters", 120)?;
        let before = ran(cluster, namespace)?;
        kill_and_await_return(&testbed, node, KUBELET)?;
        wait::until(
            "the node's lease to be renewed",
            Duration::from_secs(60),
            || {
                let age = cluster.value(
                    "kube-node-lease",
                    &format!("lease/{node}"),
                    "{.spec.renewTime}",
                )?;
                let newer = cluster
                    .kubectl(&format!("-n {namespace} exec deployment/counters -- true"))
                    .output()?;
                Ok(if newer.status == 0 && node_ready(cluster, node)? {
                    Ok(())
                } else {
                    Err(format!("{age}: {}", newer.stderr))
                })
            },
        )?;
        let after = ran(cluster, namespace)?;
        ensure!(
            before.len() == 20 && before == after,
            "containers changed:\n{before:?}\n{after:?}"
        );
        for Ran { pod, .. } in &after {
            let log = cluster
                .kubectl(&format!("-n {namespace} logs {pod}"))
                .success()?;
            for (index, line) in log.lines().enumerate() {
                ensure!(
                    line == (index + 1).to_string(),
                    "{pod}: line {} is {line:?}",
                    index + 1
                );
            }
            ensure!(
                log.lines().count() > 5,
                "{pod} wrote only {} lines",
                log.lines().count()
            );
        }
        // The adopted pods are still the kubelet's to end.
        let start = Instant::now();
        cluster
            .kubectl(&format!(
                "-n {namespace} delete deployment counters --cascade=foreground --timeout=60s"
            ))
            .limit(70)
            .success()
            .with_context(|| format!("deleting after {:?}", start.elapsed()))?;
        Ok(())
    })
}

pub fn every_other_process_of_a_bubble_comes_back(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let cluster = context.cluster()?;
    let controller = [
        "etcd ",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "coredns",
        "hpk-bubble forward",
    ];
    let every = [
        "flanneld",
        "hpk-net-daemon overlay",
        "hpk-net-daemon relay",
        "kube-proxy",
        "(pasta|passt|slirp4netns)",
    ];
    let kills = controller
        .iter()
        .chain(&every)
        .map(|name| ("node1", *name))
        .chain(every.iter().map(|name| ("node3", *name)));
    for (host, name) in kills {
        let pattern = format!("^[^ ]*({name}|hpk-control-plane {name})");
        kill_and_await_return(&testbed, host, &pattern)?;
        works(&cluster).with_context(|| format!("after {name} was killed on {host}"))?;
    }
    Ok(())
}

/// A pod on every node starts, and reaches a Service by name.
fn works(cluster: &Cluster) -> Result<()> {
    let namespace = wait::until("the API server to answer", Duration::from_secs(60), || {
        Ok(cluster
            .namespace("works")
            .map_err(|error| format!("{error:#}")))
    })?;
    let result = (|| {
        cluster.apply(
            &namespace,
            r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: probe
        image: busybox:1.37
        command: [sh, -c, "until nslookup kubernetes.default.svc.cluster.local >/dev/null; do usleep 200000; done; touch /ok; sleep 3600"]
        readinessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1}
"#,
        )?;
        cluster.roll_out(&namespace, "daemonset/probe", 60)
    })();
    let pods = cluster
        .kubectl(&format!("-n {namespace} get pods -o wide"))
        .output();
    cluster
        .kubectl(&format!(
            "delete namespace {namespace} --timeout=60s --ignore-not-found"
        ))
        .limit(70)
        .success()?;
    match result {
        Ok(()) => Ok(()),
        Err(error) => bail!("{error:#}\n{}", pods?.stdout),
    }
}

pub fn two_clusters_share_their_hosts(context: &mut Context) -> Result<()> {
    let first = context.cluster()?;
    let second = Cluster::start(&context.testbed, 3, SIZE)?;
    let result = works(&second).and_then(|()| works(&first));
    second.cancel()?;
    result?;
    super::jobs::gone(&context.testbed, &second.job)?;
    works(&first).context("after the second cluster has ended")?;
    Ok(())
}
