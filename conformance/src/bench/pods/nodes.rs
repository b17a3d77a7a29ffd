//! A cluster of one bubble, and the stock node that joins it.

use anyhow::{Context as _, Result};

use super::STOCK;
use crate::bench::net::HOSTS;
use crate::bench::on_host::Times;
use crate::cluster::{Cluster, PodsOf};
use crate::testbed::Testbed;

const NAMESPACE: &str = "bench";
/// Of the job: the control plane is in it.
const SIZE: &str = "--cpus-per-task=2 --mem=6G";

/// The daemons of a node, and what it runs for each pod, as pgrep's patterns for command lines.
struct Programs {
    daemons: &'static str,
    all: &'static str,
}

const STOCK_PROGRAMS: Programs = Programs {
    daemons: "^(/hpk/bin/kubelet|containerd) --config /run/hpk-stock/",
    all: "^(/hpk/bin/kubelet|containerd) --config /run/hpk-stock/|^/usr/bin/containerd-shim-runc-v2 ",
};
const HPK_PROGRAMS: Programs = Programs {
    daemons: "^[^ ]*hpk-kubelet ",
    all: "^[^ ]*(hpk-kubelet|containerd-shim-hpk-v2|hpk-logger) ",
};

pub struct Nodes {
    testbed: Testbed,
    cluster: Cluster,
}

/// What a node's programs use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// The daemons' resident memory, MB.
    pub resident: f64,
    /// The time of daemons and shims on processors, % of a core.
    pub busy: f64,
}

fn host(contender: &str) -> &'static str {
    HOSTS[usize::from(contender == STOCK)]
}

/// The node's name; a bubble's is its host's.
fn node(contender: &str) -> &'static str {
    match contender {
        STOCK => STOCK,
        _ => HOSTS[0],
    }
}

fn pods(contender: &str, count: usize) -> PodsOf<'static> {
    PodsOf {
        namespace: NAMESPACE,
        node: node(contender),
        count,
    }
}

impl Nodes {
    /// Starts the cluster; its bubble is on the first host.
    pub fn start(testbed: &Testbed) -> Result<Self> {
        let cluster = Cluster::start(testbed, 1, &format!("{SIZE} --nodelist={}", HOSTS[0]))?;
        let nodes = Self {
            testbed: testbed.clone(),
            cluster,
        };
        if let Err(error) = nodes.cluster.namespace(NAMESPACE) {
            nodes.end()?;
            return Err(error);
        }
        Ok(nodes)
    }

    /// Adds the stock node, on the second host.
    pub fn add_stock(&self) -> Result<()> {
        let view = format!(
            "kubectl --kubeconfig ~/.hpk/kubeconfig config view --raw --flatten --minify --context=hpk-{}",
            self.cluster.job
        );
        let kubeconfig = self.testbed.on("hpc", "login", view).success()?;
        self.testbed
            .on("root", host(STOCK), "/hpk/conformance/stock-node up")
            .input(kubeconfig)
            .limit(180)
            .success()
            .context(
                "starting the stock node (its kubelet: shim-hpk/tests/cri/build.sh kubelet)",
            )?;
        self.cluster.wait(
            "default",
            &format!("--for=condition=Ready node/{STOCK}"),
            60,
        )
    }

    /// Starts `count` pods at once, and returns when all are running.
    pub fn run(&self, contender: &str, count: usize) -> Result<Times> {
        self.cluster.start_pods(&pods(contender, count))
    }

    /// Deletes them, and returns when the API server has none left.
    pub fn remove(&self, contender: &str, count: usize) -> Result<Times> {
        self.cluster.remove_pods(&pods(contender, count))
    }

    /// What the node's programs use, over `seconds`.
    pub fn used(&self, contender: &str, seconds: usize) -> Result<Used> {
        let programs = match contender {
            STOCK => STOCK_PROGRAMS,
            _ => HPK_PROGRAMS,
        };
        // schedstat's first field: nanoseconds on a CPU (Documentation/scheduler/sched-stats).
        let script = format!(
            "set -e -o pipefail
             busy() {{ for pid in $pids; do cat /proc/$pid/task/*/schedstat; done | awk '{{ n += $1 }} END {{ printf \"%.0f\\n\", n }}'; }}
             pids=$(pgrep -f '{}')
             busy; sleep {seconds}; busy
             for pid in $(pgrep -f '{}'); do cat /proc/$pid/status; done | awk '/^VmRSS/ {{ n += $2 }} END {{ print n }}'",
            programs.all, programs.daemons
        );
        let text = self
            .testbed
            .on("root", host(contender), script)
            .limit(seconds as u64 + 60)
            .success()?;
        used(&text, seconds).with_context(|| format!("{} said {text:?}", host(contender)))
    }

    /// Ends the stock node and the job.
    pub fn end(self) -> Result<()> {
        let stock = self
            .testbed
            .on("root", host(STOCK), "/hpk/conformance/stock-node down")
            .success();
        self.cluster.end()?;
        stock.map(drop)
    }
}

/// Nanoseconds before and after, and KiB.
fn used(text: &str, seconds: usize) -> Result<Used> {
    let numbers: Vec<f64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let &[before, after, resident] = numbers.as_slice() else {
        anyhow::bail!("{} numbers instead of 3", numbers.len());
    };
    Ok(Used {
        resident: resident * 1024.0 / 1e6,
        busy: (after - before) / 1e9 / seconds as f64 * 100.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_in_the_units_they_are_shown_in() {
        let expected = Used {
            resident: 1.024,
            busy: 5.0,
        };
        assert_eq!(
            used("1000000000\n1500000000\n1000\n", 10).unwrap(),
            expected
        );
        assert!(used("1\n2\n", 10).is_err());
    }
}
