//! What `make demo` measures on a running cluster.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, PodsOf};
use crate::testbed::Testbed;

/// Starts `pods` pods on one node, one after the other, and times each from the request to the watch's
/// first word that it is running. Seconds, as "min / median / max".
pub fn pod_start(testbed: &Testbed, pods: usize) -> Result<String> {
    ensure!(pods > 0, "--pods 0 measures nothing: give 1 or more");
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
    let node = cluster.value("default", "nodes", "{.items[0].metadata.name}")?;
    let one = PodsOf {
        namespace,
        node: &node,
        count: 1,
    };
    let mut seconds = Vec::new();
    // The first only sees to it that the node has the image.
    for number in 0..=pods {
        let times = cluster.start_pods(&one)?;
        cluster.remove_pods(&one)?;
        if number > 0 {
            seconds.extend(times.runs);
        }
    }
    Ok(seconds)
}
