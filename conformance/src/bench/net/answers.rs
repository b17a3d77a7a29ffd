//! What iperf3, sockperf and /proc/stat say. Pure.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Kernel ticks a second (USER_HZ), the same on all architectures that we run on.
const TICKS: f64 = 100.0;

/// A TCP run of iperf3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stream {
    pub gbit_per_second: f64,
    pub gigabytes: f64,
    /// CPU-seconds of both iperf3 processes.
    pub own_cpu_seconds: f64,
}

/// A UDP run of iperf3, as the receiver saw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Datagrams {
    pub received_per_second: f64,
    pub lost_percent: f64,
}

/// A ping-pong run of sockperf.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requests {
    pub per_second: f64,
    /// Microseconds from request to answer.
    pub p50: f64,
    pub p99: f64,
}

/// `iperf3 -c … -J`.
pub fn stream(text: &str) -> Result<Stream> {
    let answer = iperf3(text)?;
    let received = &answer["end"]["sum_received"];
    let cpu = &answer["end"]["cpu_utilization_percent"];
    let seconds = number(received, "seconds")?;
    let percent = number(cpu, "host_total")? + number(cpu, "remote_total")?;
    Ok(Stream {
        gbit_per_second: number(received, "bits_per_second")? / 1e9,
        gigabytes: number(received, "bytes")? / 1e9,
        own_cpu_seconds: percent / 100.0 * seconds,
    })
}

/// `iperf3 -c … -u -J`. Its `sum` counts what was sent, and what of it the receiver missed.
pub fn datagrams(text: &str) -> Result<Datagrams> {
    let answer = iperf3(text)?;
    let sum = &answer["end"]["sum"];
    let received = number(sum, "packets")? - number(sum, "lost_packets")?;
    Ok(Datagrams {
        received_per_second: received / number(sum, "seconds")?,
        lost_percent: number(sum, "lost_percent")?,
    })
}

fn iperf3(text: &str) -> Result<Value> {
    let answer: Value =
        serde_json::from_str(text).with_context(|| format!("iperf3 gave no JSON: {text:?}"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("iperf3: {error}");
    }
    Ok(answer)
}

fn number(object: &Value, name: &str) -> Result<f64> {
    object[name]
        .as_f64()
        .with_context(|| format!("iperf3 gave no number {name:?} in {object}"))
}

/// `sockperf ping-pong --full-rtt`. It waits for ever for the answer to a lost datagram, and
/// then counts the time up to that one; `None` where that was before its warm-up ended.
pub fn requests(text: &str) -> Result<Option<Requests>> {
    if text.contains("No valid observations found") {
        return Ok(None);
    }
    let valid = text
        .lines()
        .find(|line| line.contains("[Valid Duration]"))
        .with_context(|| format!("sockperf measured nothing: {text:?}"))?;
    let seconds = after(valid, "RunTime=")?;
    Ok(Some(Requests {
        per_second: after(valid, "ReceivedMessages=")? / seconds,
        p50: percentile(text, "percentile 50.000 =")?,
        p99: percentile(text, "percentile 99.000 =")?,
    }))
}

fn percentile(text: &str, label: &str) -> Result<f64> {
    let line = text
        .lines()
        .find(|line| line.contains(label))
        .with_context(|| format!("sockperf said nothing of {label:?}: {text:?}"))?;
    after(line, label)
}

/// The number behind `label`.
fn after(line: &str, label: &str) -> Result<f64> {
    line.split_once(label)
        .and_then(|(_, rest)| {
            let number: String = rest
                .trim_start()
                .chars()
                .take_while(|c| c.is_ascii_digit() || *c == '.')
                .collect();
            number.parse().ok()
        })
        .with_context(|| format!("no number after {label:?} in {line:?}"))
}

/// CPU-seconds that the whole machine worked, from the first line of /proc/stat (proc(5)):
/// all but idle, iowait, and what was stolen or is counted twice.
pub fn busy_seconds(line: &str) -> Result<f64> {
    let fields: Vec<f64> = line
        .strip_prefix("cpu ")
        .with_context(|| format!("not the first line of /proc/stat: {line:?}"))?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("/proc/stat: {line:?}"))?;
    let &[user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else {
        bail!("/proc/stat has too few fields: {line:?}");
    };
    Ok((user + nice + system + irq + softirq) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_what_was_received_and_both_processes_work() {
        let text = r#"{"end": {"sum_received": {"seconds": 2.0, "bytes": 2500000000, "bits_per_second": 1e10},
            "cpu_utilization_percent": {"host_total": 40.0, "remote_total": 60.0}}}"#;
        let expected = Stream {
            gbit_per_second: 10.0,
            gigabytes: 2.5,
            own_cpu_seconds: 2.0,
        };
        assert_eq!(stream(text).unwrap(), expected);
    }

    #[test]
    fn lost_datagrams_are_not_counted() {
        let text = r#"{"end": {"sum": {"seconds": 2.0, "packets": 1000, "lost_packets": 200, "lost_percent": 20.0}}}"#;
        let answer = datagrams(text).unwrap();
        assert_eq!(
            (answer.received_per_second, answer.lost_percent),
            (400.0, 20.0)
        );
    }

    #[test]
    fn iperf3s_own_error_is_told() {
        let error = stream(r#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
        assert!(
            stream("rubbish")
                .unwrap_err()
                .to_string()
                .contains("rubbish")
        );
    }

    #[test]
    fn sockperfs_rate_and_percentiles_are_of_the_valid_time() {
        let text = "sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=50; ReceivedMessages=49\n\
            sockperf: [Valid Duration] RunTime=0.500 sec; SentMessages=20000; ReceivedMessages=20000\n\
            sockperf: ---> percentile 99.900 =   50.100\nsockperf: ---> percentile 99.000 =   31.250\n\
            sockperf: ---> percentile 50.000 =   12.5\n";
        let expected = Requests {
            per_second: 40_000.0,
            p50: 12.5,
            p99: 31.25,
        };
        assert_eq!(requests(text).unwrap(), Some(expected));
        assert!(requests("sockperf: ERROR").is_err());
        let lost = "sockperf: No valid observations found. Try tune parameters";
        assert_eq!(requests(lost).unwrap(), None);
    }

    #[test]
    fn the_machines_work_leaves_out_idle_and_stolen_time() {
        let line = "cpu  100 10 200 99999 500 20 70 8888 9999 0";
        assert_eq!(busy_seconds(line).unwrap(), 4.0);
        assert!(busy_seconds("cpu0 1 2 3 4 5 6 7").is_err());
        assert!(busy_seconds("cpu  1 2").is_err());
    }
}
