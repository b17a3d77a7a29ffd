//! The image store's scenarios (issue 7), by an ordinary user on a host of the testbed: an image of 240 MB from the
//! testbed's registry to a squashfs, beside what a user would do by hand and beside Apptainer; and ten containers of it
//! at once, from a cold and from a warm store.
//!
//! Layout: `image.sh` – makes the image; `pulls`, `burst` – the scenarios.

mod burst;
mod pulls;

use anyhow::{Context as _, Result};

use super::net::HOSTS;
use super::on_host::Times;
use super::scenario::Scenario;
use crate::testbed::{Exec, Testbed};

/// It stays in the testbed's registry.
const IMAGE: &str = "registry.hpk.test:5000/bench/pull:240";
const HOST: &str = HOSTS[0];
/// All that is written, on the host's own disk.
const WORK: &str = "/var/tmp/hpkbench-pull";

const APPTAINER: &str = "apptainer";
const HPK: &str = "hpk";

pub fn scenarios(testbed: &Testbed) -> Vec<Box<dyn Scenario>> {
    vec![
        Box::new(pulls::Pulls::new(testbed)),
        Box::new(burst::Burst::new(testbed)),
    ]
}

/// The host, with what all scripts here share.
#[derive(Debug, Clone)]
struct Place {
    testbed: Testbed,
}

impl Place {
    fn on(&self, script: &str) -> Exec<'_> {
        let script = format!(
            "set -e -o pipefail
             export IMAGE={IMAGE} WORK={WORK} PATH=/hpk/bin:$PATH TMPDIR={WORK}/tmp
             export APPTAINER_CACHEDIR={WORK}/apptainer HPK_STORE={WORK}/store
             {script}"
        );
        self.testbed.on("hpc", HOST, script).limit(900)
    }

    /// Makes the folder and sees that the registry has the image.
    fn make(&self) -> Result<()> {
        self.on(&format!(
            "mkdir -p -m 700 $WORK; mkdir -p $TMPDIR\n{}",
            include_str!("image.sh")
        ))
        .success()
        .context("making the image")?;
        self.clear("layout busybox busybox.root root part")
    }

    /// Removes what is below the folder; there may be modes in it that keep its owner out.
    fn clear(&self, names: &str) -> Result<()> {
        self.on(&format!(
            "cd $WORK; for it in {names}; do [ ! -e $it ] || chmod -R u+rwX $it; rm -rf $it; done"
        ))
        .success()
        .with_context(|| format!("removing {names}"))
        .map(drop)
    }

    fn remove(&self) -> Result<()> {
        self.testbed
            .on(
                "hpc",
                HOST,
                format!("[ ! -e {WORK} ] || {{ chmod -R u+rwX {WORK}; rm -rf {WORK}; }}"),
            )
            .success()
            .map(drop)
    }

    /// Times `count` runs of a command line, all at once.
    fn time(&self, count: usize, command: &str) -> Result<Times> {
        let script = format!(
            "hpk-conformance on-host stopwatch --count {count} --parallel {count} -- {command}"
        );
        let text = self.on(&script).success()?;
        serde_json::from_str(&text).with_context(|| format!("the stopwatch said {text:?}"))
    }
}
