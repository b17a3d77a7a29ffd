//! The links between the hosts, as they are or as on a wire.
//!
//! veths pass segmentation super-frames whole, which no wire does, and which flatters every
//! tunnel. As on a wire means: no segmentation offload and no GRO, on the hosts' ends and on
//! the switch's.

use anyhow::{Context as _, Result, bail};

use super::HOSTS;
use crate::testbed::Testbed;

const COUNT: usize = 4;
/// ethtool's names of what is turned off, as it lists them and as it takes them. UDP's
/// segmentation is none of the group `gso`: with that one off alone, UDP_SEGMENT's super-frames
/// go on passing whole.
const FEATURES: [(&str, &str); COUNT] = [
    ("tcp-segmentation-offload", "tso"),
    ("tx-udp-segmentation", "tx-udp-segmentation"),
    ("generic-segmentation-offload", "gso"),
    ("generic-receive-offload", "gro"),
];

/// A link's end and whether it had each of [`FEATURES`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    host: &'static str,
    device: String,
    had: [bool; COUNT],
}

/// The links of the hosts that take part.
#[derive(Debug)]
pub struct Links {
    testbed: Testbed,
    /// Set while they are as on a wire.
    changed: Vec<Link>,
}

impl Links {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
            changed: Vec::new(),
        }
    }

    /// Turns the offloads off, if they are not yet.
    pub fn as_a_wire(&mut self) -> Result<()> {
        if !self.changed.is_empty() {
            return Ok(());
        }
        for host in HOSTS {
            for (at, device) in [
                (host, "eth0".to_owned()),
                ("switch", format!("port-{host}")),
            ] {
                let listed = self
                    .testbed
                    .on("root", at, format!("ethtool -k {device}"))
                    .success()?;
                let link = Link {
                    host: at,
                    had: features(&listed).with_context(|| format!("ethtool -k {device}"))?,
                    device,
                };
                self.changed.push(link.clone());
                self.set(&link, [false; COUNT])?;
            }
        }
        Ok(())
    }

    /// Puts the offloads back as they were.
    pub fn as_they_are(&mut self) -> Result<()> {
        while let Some(link) = self.changed.last().cloned() {
            self.set(&link, link.had)?;
            self.changed.pop();
        }
        Ok(())
    }

    fn set(&self, link: &Link, wanted: [bool; COUNT]) -> Result<()> {
        let words: Vec<_> = FEATURES
            .iter()
            .zip(wanted)
            .map(|((_, short), on)| format!("{short} {}", if on { "on" } else { "off" }))
            .collect();
        self.testbed
            .on(
                "root",
                link.host,
                format!("ethtool -K {} {}", link.device, words.join(" ")),
            )
            .success()
            .map(drop)
    }
}

/// Which of [`FEATURES`] are on, in what `ethtool -k` lists.
fn features(listed: &str) -> Result<[bool; COUNT]> {
    let mut on = [false; COUNT];
    for (on, (name, _)) in on.iter_mut().zip(FEATURES) {
        let value = listed
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        *on = match value.and_then(|value| value.split_whitespace().next()) {
            Some("on") => true,
            Some("off") => false,
            _ => bail!("says nothing of {name}: {listed:?}"),
        };
    }
    Ok(on)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_by_their_names() {
        let listed = "Features for eth0:\ntcp-segmentation-offload: on\n\ttx-tcp-segmentation: on\n\
            generic-segmentation-offload: on\ngeneric-receive-offload: off [fixed]\n\
            tx-udp-segmentation: on\n";
        assert_eq!(features(listed).unwrap(), [true, true, true, false]);
        assert!(features("Features for eth0:\n").is_err());
    }
}
