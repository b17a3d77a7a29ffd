//! `kubectl top` with the stock metrics-server (conformance/metrics-server).

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, Unavailable, in_namespace};
use crate::cluster::Cluster;
use crate::wait;

/// Its manifests, as released.
const MANIFESTS: &str = "/hpk/bin/metrics-server/overlays/release";

/// Keeps 48 MiB, which `tail` has to hold until its input ends, and never rests long.
const BUSY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "(head -c 48m /dev/zero; while :; do usleep 5000; done) | tail"]
"#;

pub fn kubectl_top_shows_what_nodes_and_pods_use(context: &mut Context) -> Result<()> {
    let there = context
        .testbed
        .on("hpc", "login", format!("test -e {MANIFESTS}"))
        .output()?;
    if there.status != 0 {
        return Err(
            Unavailable("metrics-server has not been built: make test-e2e builds it").into(),
        );
    }
    in_namespace(context, "top", |cluster, namespace| {
        cluster
            .kubectl(&format!("apply -k {MANIFESTS}"))
            .success()?;
        let shown = show(cluster, namespace);
        cluster
            .kubectl(&format!("delete -k {MANIFESTS} --wait=false"))
            .success()?;
        shown
    })
}

fn show(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.apply(namespace, BUSY)?;
    cluster.roll_out("kube-system", "deployment/metrics-server", 120)?;
    for node in ["node1", "node2", "node3"] {
        let used = top(cluster, &format!("node {node}"))?;
        ensure!(
            used.milli > 0 && used.mebibytes > 10,
            "{node} uses {used:?}"
        );
    }
    let used = top(cluster, &format!("pod busy -n {namespace}"))?;
    ensure!(
        used.milli > 0 && (48..100).contains(&used.mebibytes),
        "the pod uses {used:?}"
    );
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Used {
    /// Thousandths of a CPU.
    milli: u64,
    mebibytes: u64,
}

/// What metrics-server has read twice of it by now.
fn top(cluster: &Cluster, what: &str) -> Result<Used> {
    let text = wait::until(
        &format!("kubectl top {what}"),
        Duration::from_secs(60),
        || {
            let output = cluster
                .kubectl(&format!("top {what} --no-headers"))
                .output()?;
            let known = output.status == 0 && !output.stdout.contains("<unknown>");
            Ok(if known {
                Ok(output.stdout)
            } else {
                Err(format!("{}{}", output.stdout, output.stderr))
            })
        },
    )?;
    parse(&text).with_context(|| format!("kubectl top {what} said {text:?}"))
}

/// A line of it: a name, `12m`, for nodes a percentage, `34Mi`.
fn parse(text: &str) -> Result<Used> {
    let mut milli = None;
    let mut mebibytes = None;
    for word in text.split_whitespace().skip(1) {
        if let Some(number) = word.strip_suffix("Mi") {
            mebibytes = Some(number.parse()?);
        } else if let Some(number) = word.strip_suffix('m') {
            milli = Some(number.parse()?);
        }
    }
    let (Some(milli), Some(mebibytes)) = (milli, mebibytes) else {
        bail!("no CPU or no memory in it");
    };
    Ok(Used { milli, mebibytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_kubectl_top_is_understood_and_one_without_figures_is_not() {
        let used = Used {
            milli: 12,
            mebibytes: 340,
        };
        assert_eq!(parse("node1  12m  0%  340Mi  11%\n").unwrap(), used);
        assert_eq!(parse("busy  12m  340Mi\n").unwrap(), used);
        assert!(parse("busy 12m <unknown>").is_err());
    }
}
