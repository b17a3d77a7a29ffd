//! iperf3 and sockperf between two ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};

use anyhow::{Context as _, Result, bail, ensure};

use super::answers;
use crate::bench::scenario::{Aim, Better, Bound, Measure, Metric, Pace};
use crate::testbed::{Testbed, stop};

const IPERF3_PORT: u16 = 15201;
const SOCKPERF_PORT: u16 = 15202;
/// Payload of datagrams and requests, bytes.
const SMALL: u32 = 64;
/// What the watcher of a server says.
const LISTENING: &str = "the-server-listens";
const SILENT: &str = "the-server-does-not-listen";
/// How often requests are tried when one is lost before anything was measured.
const TRIES: usize = 3;
/// Seconds beyond the traffic's own that a run may take.
const SLACK: u64 = 30;

/// Where a program runs: on a host of the testbed, and there in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub host: &'static str,
    /// What enters the network namespace, with a space behind; empty for the host's own.
    pub enter: String,
}

/// Traffic from a client to a server that has this address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub client: End,
    pub server: End,
    pub address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp { streams: u8 },
    Datagrams,
    Requests { tcp: bool },
}

macro_rules! metric {
    ($name:literal, $unit:literal, $better:ident) => {
        Metric {
            name: $name,
            unit: $unit,
            better: Better::$better,
        }
    };
}

/// A measure's name, its metrics, and what it runs.
type Line = (&'static str, &'static [Metric], Kind);

const TABLE: &[Line] = &[
    (
        "tcp-1",
        &[
            metric!("TCP, 1 stream", "Gbit/s", Higher),
            metric!("CPU of the machine, 1 stream", "s/GB", Lower),
            metric!("CPU of iperf3 itself, 1 stream", "s/GB", Lower),
        ],
        Kind::Tcp { streams: 1 },
    ),
    (
        "tcp-4",
        &[
            metric!("TCP, 4 streams", "Gbit/s", Higher),
            metric!("CPU of the machine, 4 streams", "s/GB", Lower),
            metric!("CPU of iperf3 itself, 4 streams", "s/GB", Lower),
        ],
        Kind::Tcp { streams: 4 },
    ),
    (
        "udp",
        &[
            metric!("UDP, 64 bytes, received", "packets/s", Higher),
            metric!("UDP, 64 bytes, lost", "%", Lower),
        ],
        Kind::Datagrams,
    ),
    (
        "tcp-rr",
        &[
            metric!("TCP request/response", "/s", Higher),
            metric!("TCP request/response, p50", "µs", Lower),
            metric!("TCP request/response, p99", "µs", Lower),
        ],
        Kind::Requests { tcp: true },
    ),
    (
        "udp-rr",
        &[
            metric!("UDP request/response", "/s", Higher),
            metric!("UDP request/response, p50", "µs", Lower),
            metric!("UDP request/response, p99", "µs", Lower),
        ],
        Kind::Requests { tcp: false },
    ),
];

/// Every kind of traffic, under a heading.
pub fn measures(section: &'static str) -> Vec<Measure> {
    TABLE
        .iter()
        .map(|(word, metrics, _)| Measure {
            word,
            section,
            metrics,
        })
        .collect()
}

/// The first metric of a kind of traffic in relation to another contender's.
pub fn aim(
    word: &'static str,
    contender: &'static str,
    against: &'static str,
    bound: Bound,
) -> Aim {
    aim_of(word, 0, contender, against, bound)
}

/// The same for the request's p50.
pub fn latency_aim(
    word: &'static str,
    contender: &'static str,
    against: &'static str,
    bound: Bound,
) -> Aim {
    aim_of(word, 1, contender, against, bound)
}

fn aim_of(
    word: &'static str,
    metric: usize,
    contender: &'static str,
    against: &'static str,
    bound: Bound,
) -> Aim {
    let line = TABLE.iter().find(|line| line.0 == word);
    Aim {
        measure: word,
        metric: line.map_or("", |line| line.1[metric].name),
        contender,
        against: Some(against),
        bound,
    }
}

/// Runs the kind of traffic with this name; a value for each of its metrics.
pub fn run(testbed: &Testbed, path: &Path, word: &str, pace: Pace) -> Result<Vec<f64>> {
    let (_, _, kind) = TABLE
        .iter()
        .find(|line| line.0 == word)
        .with_context(|| format!("there is no traffic {word:?}"))?;
    let server = Server::start(testbed, path, *kind)?;
    let values = client(testbed, path, *kind, pace);
    let stopped = server.stop();
    let values = values?;
    stopped?;
    Ok(values)
}

/// A server that listens.
#[derive(Debug)]
struct Server {
    child: Child,
    /// Held so that what it says later doesn't end it.
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(testbed: &Testbed, path: &Path, kind: Kind) -> Result<Self> {
        let enter = &path.server.enter;
        let (filter, command) = match kind {
            Kind::Tcp { .. } | Kind::Datagrams => (
                format!("-t sport = :{IPERF3_PORT}"),
                format!("iperf3 -s -1 -p {IPERF3_PORT}"),
            ),
            Kind::Requests { tcp } => (
                format!("{} sport = :{SOCKPERF_PORT}", if tcp { "-t" } else { "-u" }),
                format!(
                    "sockperf server -i {} -p {SOCKPERF_PORT}{}",
                    path.address,
                    if tcp { " --tcp" } else { "" }
                ),
            ),
        };
        // The watcher ends with the first look that sees the socket; the server takes this
        // shell's place, so that ending it ends the server.
        let script = format!(
            "{{ timeout 10 bash -c 'until {enter}ss -Hln {filter} | grep -q .; do sleep 0.02; done' && \
             echo {LISTENING} || echo {SILENT}; }} & exec {enter}{command} 2>&1"
        );
        let mut child = testbed
            .on("root", path.server.host, script)
            .limit(3600)
            .spawn()?;
        let pipe = child.stdout.take().context("the server has no output")?;
        let mut output = BufReader::new(pipe);
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let count = output.read_line(&mut line).context("reading a server");
            match (count, line.trim_end()) {
                (Ok(1..), LISTENING) => break,
                (Ok(1..), other) if other != SILENT => said.push_str(&line),
                (count, _) => {
                    stop(child)?;
                    count?;
                    bail!(
                        "{command} does not listen on {}; it said {said:?}",
                        path.server.host
                    );
                }
            }
        }
        Ok(Self {
            child,
            _output: output,
        })
    }

    fn stop(self) -> Result<()> {
        stop(self.child)
    }
}

fn client(testbed: &Testbed, path: &Path, kind: Kind, pace: Pace) -> Result<Vec<f64>> {
    let enter = &path.client.enter;
    let address = &path.address;
    // To iperf3, 0 s would be for ever.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = pace.seconds.ceil().max(1.0) as u64;
    let iperf3 = format!("{enter}iperf3 -c {address} -p {IPERF3_PORT} -t {seconds} -J");
    let script = match kind {
        Kind::Tcp { streams } => {
            format!("head -n 1 /proc/stat; {iperf3} -P {streams} && head -n 1 /proc/stat")
        }
        Kind::Datagrams => format!("{iperf3} -u -b 0 -l {SMALL}"),
        Kind::Requests { tcp } => format!(
            "{enter}sockperf ping-pong -i {address} -p {SOCKPERF_PORT} -t {seconds} -m {SMALL} --full-rtt{}",
            if tcp { " --tcp" } else { "" }
        ),
    };
    let exec = testbed
        .on("root", path.client.host, script)
        .limit(seconds + SLACK);
    match kind {
        Kind::Tcp { .. } => tcp(&exec.success()?),
        Kind::Datagrams => {
            let answer = answers::datagrams(&exec.success()?)?;
            Ok(vec![answer.received_per_second, answer.lost_percent])
        }
        Kind::Requests { .. } => {
            for _ in 0..TRIES {
                if let Some(answer) = answers::requests(&exec.success()?)? {
                    return Ok(vec![answer.per_second, answer.p50, answer.p99]);
                }
            }
            bail!("a message was lost in the first moments of {TRIES} tries");
        }
    }
}

/// /proc/stat's first line, iperf3's answer, /proc/stat's first line.
fn tcp(text: &str) -> Result<Vec<f64>> {
    let (before, rest) = text.split_once('\n').context("no output")?;
    let (answer, after) = rest
        .trim_end()
        .rsplit_once('\n')
        .context("output of one line")?;
    let stream = answers::stream(answer)?;
    ensure!(stream.gigabytes > 0.0, "iperf3 moved no bytes: {answer}");
    let busy = answers::busy_seconds(after)? - answers::busy_seconds(before)?;
    Ok(vec![
        stream.gbit_per_second,
        busy / stream.gigabytes,
        stream.own_cpu_seconds / stream.gigabytes,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_seconds_are_of_the_time_between_the_two_lines() {
        let text = "cpu  100 0 0 0 0 0 0\n{\"end\": {\"sum_received\":\n{\"seconds\": 1, \"bytes\": 2e9, \
            \"bits_per_second\": 16e9}, \"cpu_utilization_percent\": {\"host_total\": 50, \"remote_total\": 50}}}\n\
            cpu  200 0 100 0 0 0 0\n";
        assert_eq!(tcp(text).unwrap(), [16.0, 1.0, 0.5]);
        assert!(tcp("cpu  1\n").is_err());
    }

    #[test]
    fn aims_name_metrics_that_there_are() {
        let aim = latency_aim("tcp-rr", "a", "b", Bound::AtMost(3.0));
        assert_eq!(aim.metric, "TCP request/response, p50");
    }
}
