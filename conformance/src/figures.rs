//! What `make demo` measures on a running cluster.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::testbed::{Testbed, stop};

/// Starts `pods` pods one after the other and times each from the watch's first event of
/// it to the first that says Running. Seconds, as "min / median / max".
pub fn pod_start(testbed: &Testbed, pods: usize) -> Result<String> {
    let cluster = Cluster::running(testbed)?;
    let namespace = cluster.namespace("pod-start")?;
    let measured = measure(&cluster, &namespace, pods);
    cluster.remove_namespace(&namespace)?;
    let mut seconds = measured?;
    seconds.sort_by(f64::total_cmp);
    Ok(format!(
        "pod created → Running: min {:.2} s, median {:.2} s, max {:.2} s ({pods} pods, cached image)",
        seconds[0],
        seconds[seconds.len() / 2],
        seconds[seconds.len() - 1]
    ))
}

fn measure(cluster: &Cluster, namespace: &str, pods: usize) -> Result<Vec<f64>> {
    if pods == 0 {
        bail!("--pods 0 measures nothing: give 1 or more");
    }
    // The first pod only sees to it that every node has the image.
    (0..=pods)
        .map(|number| start_one(cluster, namespace, &format!("pod{number}")))
        .skip(1)
        .collect()
}

fn start_one(cluster: &Cluster, namespace: &str, pod: &str) -> Result<f64> {
    let limit = Duration::from_secs(60);
    let mut watch = cluster
        .kubectl(&format!(
            "-n {namespace} get pods -w -o jsonpath='{{.metadata.name}} {{.status.phase}}{{\"\\n\"}}'"
        ))
        .limit(limit.as_secs())
        .spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("the watch has no output")?).lines();
    let node = cluster.value("default", "nodes", "{.items[0].metadata.name}")?;
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "busybox:1.37",
                            "imagePullPolicy": "IfNotPresent",
                            "command": ["sleep", "600"]}]
        }
    });
    cluster.apply(namespace, &manifest.to_string())?;
    let mut created = None;
    let mut took = None;
    for line in lines {
        let line = line.context("reading the watch")?;
        match line.split_once(' ') {
            Some((name, "Running")) if name == pod => {
                let start: Instant = created.context("the watch began too late")?;
                took = Some(start.elapsed().as_secs_f64());
                break;
            }
            Some((name, _)) if name == pod && created.is_none() => created = Some(Instant::now()),
            _ => {}
        }
    }
    stop(watch)?;
    took.with_context(|| format!("pod {pod} was not Running within {} s", limit.as_secs()))
}
