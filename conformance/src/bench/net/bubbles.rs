//! A job of two bubbles with a pod in each, and its rest: while traffic is measured, the
//! job's control plane is stopped (SIGSTOP), so that several clusters on a machine of few
//! cores don't measure each other. Pods, overlay and uplink go on.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::HOSTS;
use super::traffic::{End, Path};
use crate::cluster::Cluster;
use crate::testbed::Testbed;
use crate::wait;

/// A node's share: three jobs fit beside each other on the testbed's hosts.
const SIZE: &str = "--cpus-per-task=2 --mem=3G --time=60";
/// Processes that carry no pod's traffic, by the names that the kernel cuts at 15 bytes.
const CONTROL_PLANE: &str = "etcd hpk-control-pla hpk-kubelet";

/// How a job's bubbles reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub overlay: &'static str,
    pub uplink: &'static str,
}

#[derive(Debug)]
pub struct Bubbles {
    testbed: Testbed,
    cluster: Cluster,
    stopped: bool,
}

/// What is looked up on a host about a job's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    /// A process of it, as the host counts.
    pid: String,
    address: String,
}

impl Bubbles {
    /// Starts a job; the caller ends it also when later steps fail.
    pub fn start(testbed: &Testbed, mode: Mode) -> Result<Self> {
        let cluster = Cluster::start(
            testbed,
            HOSTS.len(),
            &format!(
                "{SIZE} --nodelist={} --export=ALL,HPK_OVERLAY={},HPK_UPLINK={}",
                HOSTS.join(","),
                mode.overlay,
                mode.uplink
            ),
        )?;
        Ok(Self {
            testbed: testbed.clone(),
            cluster,
            stopped: false,
        })
    }

    /// A pod on each host, and the way from the first to the second.
    pub fn path(&self, mode: Mode) -> Result<Path> {
        for host in HOSTS {
            self.ensure_mode(host, mode)?;
        }
        let namespace = self.cluster.namespace("bench")?;
        for host in HOSTS {
            self.cluster.apply(&namespace, &self.manifest(host))?;
        }
        self.cluster
            .wait(&namespace, "--for=condition=Ready pod --all", 90)?;
        let [client, server] = HOSTS.map(|host| self.pod(&namespace, host));
        let (client, server) = (client?, server?);
        let end = |host, pod: &Pod| End {
            host,
            enter: format!("nsenter -t {} -n ", pod.pid),
        };
        Ok(Path {
            client: end(HOSTS[0], &client),
            server: end(HOSTS[1], &server),
            address: server.address,
        })
    }

    /// An overlay that fell back to another mode would be measured under a wrong name.
    fn ensure_mode(&self, host: &'static str, mode: Mode) -> Result<()> {
        let published = format!(
            "cat {}/run/hpk/overlay.json",
            self.cluster.local_folder(host)?
        );
        let text = self.testbed.on("root", host, published).success()?;
        let overlay: Value =
            serde_json::from_str(&text).with_context(|| format!("overlay.json: {text:?}"))?;
        ensure!(
            overlay["mode"] == mode.overlay,
            "the overlay of job {} on {host} is in mode {} instead of {}",
            self.cluster.job,
            overlay["mode"],
            mode.overlay
        );
        Ok(())
    }

    fn mark(&self) -> String {
        format!("HPK_BENCH_JOB={}", self.cluster.job)
    }

    fn manifest(&self, host: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": host},
            "spec": {
                "nodeName": host, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "busybox:1.37",
                                "command": ["sleep", "86400"],
                                "env": [{"name": "HPK_BENCH_JOB", "value": self.cluster.job}]}]
            }
        })
        .to_string()
    }

    fn pod(&self, namespace: &str, host: &'static str) -> Result<Pod> {
        let address = self
            .cluster
            .value(namespace, &format!("pod/{host}"), "{.status.podIP}")?;
        // The runtime's own processes have the variable too, in the bubble's namespace.
        let script = format!(
            "for file in $(grep -lzxs '{}' /proc/[0-9]*/environ); do
                 pid=${{file#/proc/}}; pid=${{pid%/environ}}
                 if nsenter -t $pid -n ip -4 -o address show | grep -qF ' {address}/'; then echo $pid; exit; fi
             done; exit 1",
            self.mark()
        );
        let pid = self
            .testbed
            .on("root", host, script)
            .success()
            .with_context(|| format!("looking for the pod {address}"))?;
        Ok(Pod {
            pid: pid.trim().to_owned(),
            address,
        })
    }

    /// Stops the control plane, or lets it go on and waits until it answers.
    pub fn rest(&mut self, path: &Path, stop: bool) -> Result<()> {
        if self.stopped == stop {
            return Ok(());
        }
        let signal = if stop { "STOP" } else { "CONT" };
        // Set before, so that a stop that fails half-way is undone.
        self.stopped = true;
        for end in [&path.client, &path.server] {
            self.testbed
                .on("root", end.host, signal_script(&end.enter, signal))
                .success()?;
        }
        self.stopped = stop;
        if !stop {
            wait::until("the API server to go on", Duration::from_secs(30), || {
                let output = self.cluster.kubectl("get --raw /readyz").output()?;
                Ok(if output.status == 0 {
                    Ok(())
                } else {
                    Err(output.stderr)
                })
            })?;
        }
        Ok(())
    }

    /// The CPU time of the overlay's daemon on the first host over `seconds`, % of a core.
    pub fn idle(&self, seconds: f64) -> Result<f64> {
        // schedstat's first field: nanoseconds on a CPU (Documentation/scheduler/sched-stats).
        let folder = self.cluster.local_folder(HOSTS[0])?;
        let script = format!(
            "set -e -o pipefail
             pid=$(pgrep -f '^[^ ]*hpk-net-daemon overlay .*{folder}/')
             total() {{ cat /proc/$pid/task/*/schedstat | awk '{{ n += $1 }} END {{ printf \"%.0f\\n\", n }}'; }}
             total; sleep {seconds}; total"
        );
        let text = self.testbed.on("root", HOSTS[0], script).success()?;
        let totals: Vec<f64> = text
            .lines()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("the daemon's times are {text:?}"))?;
        let &[before, after] = totals.as_slice() else {
            bail!("the daemon's times are {text:?}");
        };
        Ok((after - before) / 1e9 / seconds * 100.0)
    }

    /// Ends the job and waits until Slurm has it off the hosts. A control plane that is
    /// stopped could not end.
    pub fn end(mut self, path: Option<&Path>) -> Result<()> {
        let resumed = match path {
            Some(path) if self.stopped => self.rest(path, false),
            _ => Ok(()),
        };
        self.cluster.end()?;
        resumed
    }
}

/// Signals the control plane's processes of a pod's bubble: they are in the network namespace
/// of the pod's first ancestor that is not in the pod's own.
fn signal_script(enter: &str, signal: &str) -> String {
    format!(
        "set -e
         pid=$(echo '{enter}' | sed 's/.*-t \\([0-9]*\\).*/\\1/')
         pod=$(readlink /proc/$pid/ns/net)
         while [ \"$(readlink /proc/$pid/ns/net)\" = \"$pod\" ]; do
             pid=$(awk '/^PPid:/ {{ print $2 }}' /proc/$pid/status)
         done
         bubble=$(readlink /proc/$pid/ns/net)
         for name in {CONTROL_PLANE}; do
             for pid in $(pgrep -x $name || true); do
                 if [ \"$(readlink /proc/$pid/ns/net || true)\" = \"$bubble\" ]; then kill -{signal} $pid; fi
             done
         done"
    )
}
