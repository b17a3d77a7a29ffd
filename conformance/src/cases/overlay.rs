//! What the overlay between the nodes goes through, and a connection between pods with it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::faults::kill_and_await_return;
use super::{Context, in_namespace};
use crate::cluster::Cluster;
use crate::wait;

/// Takes one connection, and keeps what comes over it.
const LISTENER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  nodeName: node2
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1.37
    command: [sh, -c, "sleep 3600 | nc -l -p 7000 > /got"]
    readinessProbe: {exec: {command: [sh, -c, "netstat -ltn | grep -q :7000"]}, periodSeconds: 1}
"#;

/// Makes the connection, and sends numbers over it, ten a second.
const TELLER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: teller}
spec:
  nodeName: node1
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1.37
    command: [sh, -c, "n=0; while :; do n=$((n + 1)); echo $n; usleep 100000; done | nc ADDRESS 7000"]
"#;

/// A TCP connection from a pod on node1 to one on node2.
struct Connection<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    /// Of the pod on node2.
    address: String,
}

impl<'a> Connection<'a> {
    fn make(cluster: &'a Cluster, namespace: &'a str) -> Result<Self> {
        cluster.apply(namespace, LISTENER)?;
        cluster.wait(namespace, "--for=condition=Ready pod/listener", 90)?;
        let address = cluster.value(namespace, "pod/listener", "{.status.podIP}")?;
        cluster.apply(namespace, &TELLER.replace("ADDRESS", &address))?;
        cluster.wait(namespace, "--for=condition=Ready pod/teller", 90)?;
        let this = Self {
            cluster,
            namespace,
            address,
        };
        this.goes_on("at first")?;
        Ok(this)
    }

    /// The last number that came. None may be missing, and none come twice.
    fn last(&self) -> Result<Result<usize, String>> {
        let listener = self.cluster.exec(self.namespace, "listener", "cat /got");
        let output = listener.output()?;
        if output.status != 0 {
            return Ok(Err(output.stderr));
        }
        // The last line may not be whole yet.
        let whole = output.stdout.rfind('\n').unwrap_or(0);
        let lines = output.stdout[..whole].lines();
        let count = lines.clone().count();
        for (index, line) in lines.enumerate() {
            ensure!(
                line == (index + 1).to_string(),
                "line {} is {line:?}",
                index + 1
            );
        }
        Ok(Ok(count))
    }

    /// Waits for two seconds' worth of numbers more than there are.
    fn goes_on(&self, after: &str) -> Result<()> {
        let limit = Duration::from_secs(60);
        let before = wait::until("the listener's numbers", limit, || self.last())?;
        wait::until(&format!("the connection to go on {after}"), limit, || {
            Ok(self.last()?.and_then(|last| match last > before + 20 {
                true => Ok(()),
                false => Err(format!("{last} numbers, {before} before")),
            }))
        })
    }

    /// Whether the pod on node1 reaches the one on node2.
    fn pings(&self) -> Result<bool> {
        let ping = format!("ping -q -c1 -W1 {}", self.address);
        let output = self
            .cluster
            .exec(self.namespace, "teller", &ping)
            .output()?;
        Ok(output.status == 0)
    }

    fn await_pings(&self, wanted: bool, limit: Duration) -> Result<()> {
        let what = match wanted {
            true => "the pods to reach each other",
            false => "the pods not to reach each other",
        };
        wait::until(what, limit, || {
            let pings = self.pings()?;
            Ok(match pings == wanted {
                true => Ok(()),
                false => Err(format!("ping succeeds: {pings}")),
            })
        })
    }
}

pub fn a_connection_lives_through_killed_overlay_daemons(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "overlay-killed", |cluster, namespace| {
        let connection = Connection::make(cluster, namespace)?;
        for host in ["node1", "node2"] {
            kill_and_await_return(&testbed, host, "^[^ ]*hpk-net-daemon overlay")?;
            // A second or so, and room for a slow machine and kubectl.
            connection.await_pings(true, Duration::from_secs(10))?;
            connection.goes_on(&format!("after {host}'s daemon was killed"))?;
        }
        Ok(())
    })
}

pub fn a_connection_lives_through_a_cut_host(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "overlay-cut", |cluster, namespace| {
        let connection = Connection::make(cluster, namespace)?;
        testbed.cut("node2")?;
        let parted = connection.await_pings(false, Duration::from_secs(20));
        testbed.heal("node2")?;
        parted?;
        connection.await_pings(true, Duration::from_secs(20))?;
        connection.goes_on("after node2 was cut off and healed")
    })
}
