//! A stock containerd with one image, started for a scenario and ended with it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bench::net::HOSTS;
use crate::bench::on_host::Times;
use crate::testbed::{Exec, Testbed};
use crate::wait;

pub const HOST: &str = HOSTS[0];
pub const IMAGE: &str = "docker.io/library/busybox:1.37";
/// Its state; its snapshots lie below /var/lib/containerd, which is no overlay on the testbed.
const RUN: &str = "/run/hpkbench-ctr";
const ROOT: &str = "/var/lib/containerd/hpkbench";
const NAMESPACE: &str = "bench";

/// Commands to the containerd.
#[derive(Debug, Clone)]
pub struct Containerd {
    testbed: Testbed,
}

/// A contender's runtime, by the name that containerd knows it under.
pub fn runtime(contender: &str) -> String {
    format!("io.containerd.{contender}.v2")
}

impl Containerd {
    pub fn new(testbed: &Testbed) -> Self {
        Self {
            testbed: testbed.clone(),
        }
    }

    pub fn on(&self, script: &str) -> Exec<'_> {
        self.testbed.on(
            "root",
            HOST,
            format!("export CONTAINERD_ADDRESS={RUN}/sock CONTAINERD_NAMESPACE={NAMESPACE} PATH=/hpk/bin:$PATH\n{script}"),
        )
    }

    /// Starts it and imports the image. It is in a session of its own, so that it outlives
    /// the command that starts it.
    pub fn start(&self) -> Result<()> {
        self.on(&format!(
            "set -e; mkdir -p {RUN} {ROOT}
             setsid --fork containerd --root {ROOT} --state {RUN}/state --address {RUN}/sock > {RUN}/log 2>&1 < /dev/null"
        ))
        .success()
        .context("starting containerd")?;
        wait::until("containerd", Duration::from_secs(20), || {
            let output = self.on("ctr version").output()?;
            Ok(if output.status == 0 {
                Ok(())
            } else {
                Err(output.stderr)
            })
        })?;
        self.on(&format!(
            "set -e; rm -f {RUN}/image.tar
             skopeo copy -q docker://{IMAGE} docker-archive:{RUN}/image.tar:{IMAGE}
             ctr image import {RUN}/image.tar > /dev/null; rm {RUN}/image.tar"
        ))
        .limit(120)
        .success()
        .context("importing the image")
        .map(drop)
    }

    /// Ends every task, then containerd, and removes what it kept.
    pub fn end(&self) -> Result<()> {
        self.on(&format!(
            "if ctr version > /dev/null 2>&1; then {REMOVE_ALL}; fi
             pid=$(pgrep -f '^containerd --root {ROOT} ' || true)
             if [ -n \"$pid\" ]; then
                 kill $pid
                 timeout 20 tail --pid=$pid -f /dev/null
             fi
             set -e; rm -rf {RUN} {ROOT}"
        ))
        .limit(300)
        .success()
        .context("ending containerd")
        .map(drop)
    }

    /// Ends every task and removes every container.
    pub fn clear(&self) -> Result<()> {
        self.on(REMOVE_ALL)
            .limit(300)
            .success()
            .context("removing the containers")
            .map(drop)
    }

    /// A container that runs until it is removed.
    pub fn keep(&self, contender: &str, id: &str) -> Result<()> {
        self.on(&format!(
            "ctr run -d --runtime {} {IMAGE} {id} sleep 86400",
            runtime(contender)
        ))
        .success()
        .map(drop)
    }

    /// Times `count` runs of a command line, `parallel` at once; `{}` in it is the number.
    pub fn time(&self, count: usize, parallel: usize, command: &str) -> Result<Times> {
        let text = self
            .on(&format!(
                "hpk-conformance on-host stopwatch --count {count} --parallel {parallel} -- {command}"
            ))
            .limit(600)
            .success()?;
        serde_json::from_str(&text).with_context(|| format!("the stopwatch said {text:?}"))
    }
}

/// The last line fails if a container is left.
const REMOVE_ALL: &str = "ctr task ls -q | xargs -r -n 1 -P 4 ctr task kill -s SIGKILL
     ctr task ls -q | xargs -r -n 1 -P 4 ctr task rm -f > /dev/null
     ctr container ls -q | xargs -r ctr container rm";
