//! Pod to pod on one node. Each contender has a node of its own, a network namespace, in
//! which its plugin joins two pods.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::traffic::{self, End, Path};
use super::{HOSTS, PREFIX, remove_namespaces};
use crate::bench::scenario::{Aim, Bound, Measure, Pace, Scenario};
use crate::testbed::Testbed;

const HOST: &str = HOSTS[0];
const SECTION: &str = "One node, pod to pod";
const CONTENDERS: &[&str] = &["bridge", "ptp", "veth", TAP, TAP_FRAMES];
/// The relay has the pod's TAP itself, or a process beside the pod sends it the frames over a
/// UNIX socket.
const TAP: &str = "tap";
const TAP_FRAMES: &str = "tap-frames";
const TAPS: [&str; 2] = [TAP, TAP_FRAMES];

pub struct OneNode {
    testbed: Testbed,
    /// Contenders of which pods may be attached.
    begun: Vec<&'static str>,
    paths: Vec<(&'static str, Path)>,
}

impl OneNode {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
            begun: Vec::new(),
            paths: Vec::new(),
        }
    }

    fn root(&self, script: &str) -> Result<String> {
        self.testbed.on("root", HOST, script).success()
    }

    /// One ADD or DEL of `pod` on the contender's network.
    fn attach(&self, action: &str, contender: &str, pod: &str) -> Result<Value> {
        let node = node(contender);
        let text = self.root(&format!(
            "nsenter --net=/run/netns/{node} /hpk/bin/hpk-conformance on-host attach {action} \
             --conf /run/{node}/conflist --plugins /hpk/bin:/usr/lib/cni --cache /run/{node}/cache \
             --id {pod} --netns /run/netns/{pod}"
        ))?;
        serde_json::from_str(&text).with_context(|| format!("attach {action} printed {text:?}"))
    }
}

fn node(contender: &str) -> String {
    format!("{PREFIX}-1-{contender}")
}

fn pods(contender: &str) -> [String; 2] {
    ["a", "b"].map(|pod| format!("{}-{pod}", node(contender)))
}

/// The network of a contender, its state in `folder`.
pub fn conflist(contender: &str, folder: &str) -> Value {
    let subnet = "10.245.1.0/24";
    let ipam = json!({
        "type": "host-local", "dataDir": format!("{folder}/ipam"),
        "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
    });
    let plugin = match contender {
        "bridge" => json!({"type": "bridge", "bridge": "bridge", "isGateway": true, "ipam": ipam}),
        "ptp" => json!({"type": "ptp", "ipam": ipam}),
        ours => json!({
            "type": "cni-hpk", "subnet": subnet, "dataDir": format!("{folder}/data"),
            "ipMasq": false, "datapath": if TAPS.contains(&ours) { "tap" } else { "veth" },
            "tapForm": if ours == TAP_FRAMES { "frames" } else { "descriptor" },
        }),
    };
    json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [plugin]})
}

impl Scenario for OneNode {
    fn name(&self) -> &'static str {
        "one-node"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    fn measures(&self) -> Vec<Measure> {
        traffic::measures(SECTION)
    }

    /// The plain bridge serves no same-node ClusterIP without br_netfilter; `ptp`, which
    /// routes, does: so it is what `veth` is held against.
    fn aims(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for word in ["tcp-1", "tcp-4", "udp", "tcp-rr", "udp-rr"] {
            aims.push(traffic::aim(word, "veth", "ptp", Bound::AtLeast(0.95)));
        }
        for tap in TAPS {
            for word in ["tcp-1", "tcp-4"] {
                aims.push(traffic::aim(word, tap, "bridge", Bound::AtLeast(0.5)));
            }
            for word in ["tcp-rr", "udp-rr"] {
                let most = Bound::AtMost(3.0);
                aims.push(traffic::latency_aim(word, tap, "bridge", most));
            }
        }
        aims
    }

    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        let (node, pods) = (node(contender), pods(contender));
        let folder = format!("/run/{node}");
        // br_netfilter is off in it, as on most sites.
        let script = format!(
            "set -e; mkdir -p {folder}; cat > {folder}/conflist
             for name in {node} {} {}; do ip netns add $name; ip -n $name link set lo up; done
             off=/proc/sys/net/bridge/bridge-nf-call-iptables
             nsenter --net=/run/netns/{node} sh -c \"if [ -e $off ]; then echo 0 > $off; fi\"",
            pods[0], pods[1]
        );
        self.testbed
            .on("root", HOST, script)
            .input(conflist(contender, &folder).to_string())
            .success()?;
        self.begun.push(contender);
        let mut addresses = Vec::new();
        for pod in &pods {
            let answer = self.attach("add", contender, pod)?;
            match answer["addresses"][0].as_str() {
                Some(address) => addresses.push(address.to_owned()),
                None => bail!("ADD of {pod}: {answer}"),
            }
        }
        let end = |pod: &str| End {
            host: HOST,
            enter: format!("nsenter --net=/run/netns/{pod} "),
        };
        self.paths.push((
            contender,
            Path {
                client: end(&pods[0]),
                server: end(&pods[1]),
                address: addresses.remove(1),
            },
        ));
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let path = self.paths.iter().find(|(name, _)| *name == contender);
        let (_, path) = path.context("not set up")?;
        traffic::run(&self.testbed, path, measure, pace)
    }

    /// By DEL first, which ends what a datapath runs.
    fn tear_down(&mut self) -> Result<()> {
        let mut failures = Vec::new();
        self.paths.clear();
        for contender in std::mem::take(&mut self.begun) {
            for pod in pods(contender) {
                if let Err(error) = self.attach("del", contender, &pod) {
                    failures.push(format!("DEL of {pod}: {error:#}"));
                }
            }
        }
        let prefix = node("");
        let removed = self.root(&format!(
            "set -e; {}; rm -rf /run/{prefix}*",
            remove_namespaces(&prefix)
        ));
        if let Err(error) = removed {
            failures.push(format!("{error:#}"));
        }
        if !failures.is_empty() {
            bail!("{}", failures.join("; "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_has_its_own_plugin_and_datapath() {
        let plugin = |contender| conflist(contender, "/f")["plugins"][0].clone();
        assert_eq!(plugin("bridge")["type"], "bridge");
        assert_eq!(plugin("ptp")["type"], "ptp");
        assert_eq!(plugin(TAP)["datapath"], "tap");
        assert_eq!(plugin(TAP_FRAMES)["tapForm"], "frames");
        assert_eq!(plugin("veth")["datapath"], "veth");
        assert_eq!(plugin("cni-hpk")["dataDir"], "/f/data");
    }
}
