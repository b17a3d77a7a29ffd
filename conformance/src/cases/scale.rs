//! A node with as many pods as it takes, and pods whose API server is away.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::faults::{KUBELET, Ran, kill_and_await_return, pids, ran};
use super::{Context, in_namespace};
use crate::cluster::Cluster;
use crate::testbed::Testbed;
use crate::wait;

const NODE: &str = "node3";
/// What a node takes (docs/specification.md).
const PODS: usize = 110;
/// Of them, deleted and replaced at once.
const REPLACED: usize = 20;
/// MB that a kubelet with that many pods may have resident.
const RESIDENT: f64 = 60.0;
/// Per cent of a core that a node's agents may use for that many pods that do nothing, and the seconds
/// over which they are watched.
const BUSY: f64 = 2.0;
const WATCHED: f64 = 10.0;
/// Every process of ours on a node, its control plane's aside.
const AGENTS: &str = "^[^ ]*(hpk-kubelet|containerd-shim-hpk-v2|hpk-logger|hpk-net-daemon|flanneld|kube-proxy|hpk-control-plane (flanneld|kube-proxy)) ";

const FULL: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: full}
spec:
  replicas: 110
  selector: {matchLabels: {app: full}}
  template:
    metadata: {labels: {app: full}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node3}
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
      - {name: app, image: "busybox:1.37", command: [sleep, "86400"]}
"#;

pub fn a_node_of_110_pods_loses_none_with_its_kubelet_and_replaces_twenty_at_once(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "full", |cluster, namespace| {
        await_no_pods(cluster)?;
        cluster.apply(namespace, FULL)?;
        cluster.roll_out(namespace, "deployment/full", 180)?;
        let before = ran(cluster, namespace)?;
        ensure!(
            before.len() == PODS,
            "{} pods instead of {PODS}",
            before.len()
        );

        kill_and_await_return(&testbed, NODE, KUBELET)?;
        await_kubelet(cluster, namespace, &before[0].pod)?;
        let after = ran(cluster, namespace)?;
        ensure!(
            before == after,
            "containers changed:\n{before:?}\n{after:?}"
        );
        let resident = resident(&testbed)?;
        ensure!(
            resident < RESIDENT,
            "the kubelet has {resident} MB resident instead of {RESIDENT}"
        );
        let busy = busy(&testbed)?;
        ensure!(
            busy < BUSY,
            "the node's agents use {busy} % of a core instead of {BUSY}"
        );
        println!("{PODS} pods: kubelet {resident:.1} MB, agents {busy:.2} % of a core");

        let some: Vec<&str> = before
            .iter()
            .take(REPLACED)
            .map(|ran| ran.pod.as_str())
            .collect();
        cluster
            .kubectl(&format!("-n {namespace} delete pod {}", some.join(" ")))
            .limit(120)
            .success()?;
        cluster.roll_out(namespace, "deployment/full", 120)?;
        let now: BTreeSet<Ran> = ran(cluster, namespace)?.into_iter().collect();
        let kept = before.iter().filter(|ran| now.contains(ran)).count();
        ensure!(
            now.len() == PODS && kept == PODS - REPLACED,
            "of {} pods {kept} are still those from before {REPLACED} were deleted",
            now.len()
        );
        Ok(())
    })?;
    // What comes next has the node for itself.
    let cluster = context.cluster()?;
    await_no_pods(&cluster)
}

fn await_no_pods(cluster: &Cluster) -> Result<()> {
    let what = format!("{NODE} to have no pods");
    wait::until(&what, Duration::from_secs(120), || {
        let list = format!("get pods -A -o name --field-selector=spec.nodeName={NODE}");
        let pods = cluster.kubectl(&list).success()?;
        Ok(if pods.is_empty() { Ok(()) } else { Err(pods) })
    })
}

/// Waits until it serves again.
fn await_kubelet(cluster: &Cluster, namespace: &str, pod: &str) -> Result<()> {
    wait::until("the kubelet to serve", Duration::from_secs(60), || {
        let output = cluster.exec(namespace, pod, "true").output()?;
        Ok(if output.status == 0 {
            Ok(())
        } else {
            Err(output.stderr)
        })
    })
}

/// MB. Of the largest, where there are more: until it execs, a program that the kubelet starts has its command line, too,
/// and the node may have another cluster's kubelet.
fn resident(testbed: &Testbed) -> Result<f64> {
    let script = format!(
        "for pid in $(pgrep -f '{KUBELET}'); do awk '/^VmRSS/ {{ print $2 }}' /proc/$pid/status || true; done | sort -n | tail -n 1"
    );
    let text = testbed.on("root", NODE, script).success()?;
    let kib: f64 = text
        .trim()
        .parse()
        .with_context(|| format!("VmRSS {text:?}"))?;
    Ok(kib * 1024.0 / 1e6)
}

/// Per cent of a core. schedstat's first field: nanoseconds on a CPU
/// (Documentation/scheduler/sched-stats).
fn busy(testbed: &Testbed) -> Result<f64> {
    let script = format!(
        "set -e -o pipefail
         busy() {{ for pid in $pids; do cat /proc/$pid/task/*/schedstat; done | awk '{{ n += $1 }} END {{ printf \"%.0f\\n\", n }}'; }}
         pids=$(pgrep -f '{AGENTS}')
         busy; sleep {WATCHED}; busy"
    );
    let text = testbed.on("root", NODE, script).success()?;
    let numbers: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let &[before, after] = numbers.as_slice() else {
        anyhow::bail!("{NODE} said {text:?}");
    };
    Ok((after - before) / 1e9 / WATCHED * 100.0)
}

/// Ends once, and runs on after that; sleeps that nothing else sleeps.
const PATIENT: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: patient}
spec:
  nodeName: node3
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "test -e /data/f && exec sleep 73519; touch /data/f; sleep 15; exit 3"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#;

pub fn pods_go_on_while_the_api_server_is_away_and_their_status_catches_up(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "away", |cluster, namespace| {
        cluster.apply(namespace, PATIENT)?;
        cluster.wait(namespace, "--for=condition=Ready pod/patient", 60)?;
        let first = ran(cluster, namespace)?;
        let server = pids(
            &testbed,
            "node1",
            "^[^ ]*(hpk-control-plane )?kube-apiserver ",
        )?;
        ensure!(!server.is_empty(), "no API server runs on node1");
        let signal = |name: &str| {
            let kill = format!("kill -{name} {}", server.join(" "));
            testbed.on("root", "node1", kill).success().map(drop)
        };
        signal("STOP")?;
        // Meanwhile its first run ends, and the second begins.
        let went_on = wait::until("the pod's second run", Duration::from_secs(60), || {
            let second = pids(&testbed, NODE, "^sleep 73519")?;
            Ok(if second.is_empty() {
                Err("only the first".to_owned())
            } else {
                Ok(())
            })
        });
        signal("CONT")?;
        went_on?;
        wait::until("the pod's status", Duration::from_secs(60), || {
            let path = "{.status.containerStatuses[0].restartCount} \
                        {.status.containerStatuses[0].lastState.terminated.exitCode} \
                        {.status.containerStatuses[0].ready}";
            let seen = cluster
                .kubectl(&format!(
                    "-n {namespace} get pod patient -o jsonpath='{path}'"
                ))
                .output()?;
            let caught_up = seen.status == 0 && seen.stdout == "1 3 true";
            Ok(if caught_up {
                Ok(())
            } else {
                Err(format!("{}{}", seen.stdout, seen.stderr))
            })
        })?;
        let second = ran(cluster, namespace)?;
        ensure!(first != second, "there was no second run: {second:?}");
        Ok(())
    })
}
