//! Pod to pod across two hosts: the overlay's modes beside a rootful kernel VXLAN and the
//! hosts themselves, each twice, over the links as they are and as on a wire.

use anyhow::{Context as _, Result, bail};

use super::bubbles::{Bubbles, Mode};
use super::offloads::Links;
use super::traffic::{self, End, Path};
use super::{HOSTS, vxlan};
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace, Scenario};
use crate::testbed::Testbed;

const REFERENCE: &str = "kernel-vxlan";
const OURS: &str = "host";
const SLIRP: &str = "kernel-slirp4netns";
const CONTENDERS: &[&str] = &[REFERENCE, "host-host", OURS, "kernel-pasta", SLIRP];
const AS_THEY_ARE: &str = "Two hosts, pod to pod, links as they are";
const AS_A_WIRE: &str = "Two hosts, pod to pod, no segmentation offload and no GRO on the links";
const IDLE: &[Metric] = &[Metric {
    name: "idle overlay daemon",
    unit: "% of a core",
    better: Better::Lower,
}];
/// Names of the measures over links as on a wire, beside those over the links as they are.
const WIRE: [(&str, &str); 5] = [
    ("wire-tcp-1", "tcp-1"),
    ("wire-tcp-4", "tcp-4"),
    ("wire-udp", "udp"),
    ("wire-tcp-rr", "tcp-rr"),
    ("wire-udp-rr", "udp-rr"),
];

pub struct TwoHosts {
    testbed: Testbed,
    links: Links,
    paths: Vec<(&'static str, Path)>,
    jobs: Vec<(&'static str, Bubbles)>,
}

impl TwoHosts {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
            links: Links::new(testbed),
            paths: Vec::new(),
            jobs: Vec::new(),
        }
    }

    fn addresses(&self) -> Result<[String; 2]> {
        let [first, second] = HOSTS.map(|host| {
            self.testbed
                .on(
                    "root",
                    host,
                    "ip -4 -o address show dev eth0 | awk '{split($4, a, \"/\"); print a[1]; exit}'",
                )
                .success()
                .map(|address| address.trim().to_owned())
        });
        Ok([first?, second?])
    }

    fn path(&self, contender: &str) -> Option<&Path> {
        let found = self.paths.iter().find(|(name, _)| *name == contender);
        found.map(|(_, path)| path)
    }

    /// Lets the job of the contender go on or rest.
    fn rest(&mut self, contender: &str, stop: bool) -> Result<()> {
        for (name, bubbles) in &mut self.jobs {
            let path = self.paths.iter().find(|(of, _)| of == name);
            if let Some((_, path)) = path
                && (stop || *name == contender)
            {
                bubbles.rest(path, stop)?;
            }
        }
        Ok(())
    }
}

fn mode(contender: &str) -> Option<Mode> {
    let (overlay, uplink) = match contender {
        OURS => ("host", "pasta"),
        "kernel-pasta" => ("kernel", "pasta"),
        SLIRP => ("kernel", "slirp4netns"),
        _ => return None,
    };
    Some(Mode { overlay, uplink })
}

/// The kind of traffic of a measure, and whether it goes over links as on a wire.
fn kind(measure: &str) -> (&str, bool) {
    match WIRE.iter().find(|(name, _)| *name == measure) {
        Some((_, traffic)) => (traffic, true),
        None => (measure, false),
    }
}

impl Scenario for TwoHosts {
    fn name(&self) -> &'static str {
        "two-hosts"
    }

    fn contenders(&self) -> &'static [&'static str] {
        CONTENDERS
    }

    /// `idle` comes first in a round: it is the one for which the control plane goes on.
    fn measures(&self) -> Vec<Measure> {
        let mut measures = vec![Measure {
            word: "idle",
            section: AS_THEY_ARE,
            metrics: IDLE,
        }];
        measures.extend(traffic::measures(AS_THEY_ARE));
        for measure in traffic::measures(AS_A_WIRE) {
            if let Some((word, _)) = WIRE.iter().find(|(_, traffic)| *traffic == measure.word) {
                measures.push(Measure { word, ..measure });
            }
        }
        measures
    }

    fn aims(&self) -> Vec<Aim> {
        let mut aims = vec![Aim {
            measure: "idle",
            metric: IDLE[0].name,
            contender: OURS,
            against: None,
            bound: Bound::AtMost(1.0),
        }];
        for (word, against, least) in [
            ("tcp-1", REFERENCE, 0.5),
            ("tcp-4", REFERENCE, 0.5),
            ("tcp-1", SLIRP, 10.0),
            ("tcp-4", SLIRP, 10.0),
            ("tcp-rr", REFERENCE, 0.25),
            ("udp-rr", REFERENCE, 0.25),
            ("udp", SLIRP, 5.0),
        ] {
            let aim = traffic::aim(word, OURS, against, Bound::AtLeast(least));
            aims.push(aim);
            if let Some((word, _)) = WIRE.iter().find(|(_, traffic)| *traffic == word) {
                aims.push(Aim {
                    measure: word,
                    ..aim
                });
            }
        }
        aims
    }

    fn applies(&self, contender: &str, measure: &str) -> bool {
        measure != "idle" || contender == OURS
    }

    fn set_up(&mut self, contender: &'static str) -> Result<()> {
        let addresses = self.addresses()?;
        let path = match mode(contender) {
            Some(mode) => {
                let bubbles = Bubbles::start(&self.testbed, mode)?;
                self.jobs.push((contender, bubbles));
                let (_, bubbles) = self.jobs.last().context("no job")?;
                bubbles.path(mode)?
            }
            None if contender == REFERENCE => vxlan::set_up(&self.testbed, &addresses)?,
            None => {
                let end = |host| End {
                    host,
                    enter: String::new(),
                };
                let [_, server] = addresses;
                Path {
                    client: end(HOSTS[0]),
                    server: end(HOSTS[1]),
                    address: server,
                }
            }
        };
        self.paths.push((contender, path));
        Ok(())
    }

    fn measure(&mut self, contender: &'static str, measure: &str, pace: Pace) -> Result<Vec<f64>> {
        let (kind, wire) = kind(measure);
        if wire {
            self.links.as_a_wire()?;
        } else {
            self.links.as_they_are()?;
        }
        if kind == "idle" {
            self.rest(contender, false)?;
            let job = self.jobs.iter().find(|(name, _)| *name == contender);
            let (_, bubbles) = job.context("not set up")?;
            return Ok(vec![bubbles.idle(pace.seconds)?]);
        }
        self.rest(contender, true)?;
        let path = self.path(contender).context("not set up")?;
        traffic::run(&self.testbed, path, kind, pace)
    }

    fn tear_down(&mut self) -> Result<()> {
        let mut failures = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                failures.push(format!("{error:#}"));
            }
        };
        note(self.links.as_they_are());
        for (contender, bubbles) in std::mem::take(&mut self.jobs) {
            let path = self.paths.iter().find(|(name, _)| *name == contender);
            note(bubbles.end(path.map(|(_, path)| path)));
        }
        self.paths.clear();
        note(vxlan::tear_down(&self.testbed));
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
    fn every_kind_of_traffic_is_run_twice() {
        let scenario = TwoHosts::new(&Testbed::new("testbed".into()));
        let words: Vec<_> = scenario.measures().iter().map(|one| one.word).collect();
        let (wire, plain): (Vec<&str>, Vec<&str>) =
            words.into_iter().partition(|word| kind(word).1);
        assert_eq!((wire.len(), plain.len()), (5, 6));
        assert_eq!(kind("wire-udp"), ("udp", true));
    }

    #[test]
    fn aims_are_of_measures_and_metrics_that_there_are() {
        let scenario = TwoHosts::new(&Testbed::new("testbed".into()));
        for aim in scenario.aims() {
            let measures = scenario.measures();
            let measure = measures.iter().find(|one| one.word == aim.measure).unwrap();
            assert!(
                measure
                    .metrics
                    .iter()
                    .any(|metric| metric.name == aim.metric),
                "{aim:?}"
            );
        }
    }
}
