//! What the threads count, as Prometheus reads it.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::Arc;

use hpk_frames::counters::{Counter, Counters, Reason};
use hpk_frames::shared::SharedTable;
use hpk_frames::socket;

/// Shared with the threads.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub sent: Vec<Arc<Counters>>,
    pub received: Vec<Arc<Counters>>,
    /// The kernel counts what didn't fit into their buffers.
    pub sockets: Vec<Arc<UdpSocket>>,
    table: Arc<SharedTable>,
}

impl Statistics {
    pub fn new(table: Arc<SharedTable>) -> Self {
        Self {
            sent: Vec::new(),
            received: Vec::new(),
            sockets: Vec::new(),
            table,
        }
    }

    /// In Prometheus' text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let directions = [("sent", &self.sent), ("received", &self.received)];
        type Read = fn(&Counters) -> &Counter;
        let families: [(&str, &str, Read); 5] = [
            ("frames", "Frames on the wire.", |it| &it.frames),
            (
                "bytes",
                "Of the frames on the wire, outer headers left out.",
                |it| &it.bytes,
            ),
            (
                "device_frames",
                "Frames exchanged with the device, joined ones as one.",
                |it| &it.device,
            ),
            (
                "segments",
                "Frames on the wire that were cut from, or joined into, a longer one.",
                |it| &it.segments,
            ),
            (
                "socket_calls",
                "System calls that moved messages of the UDP sockets.",
                |it| &it.calls,
            ),
        ];
        for (name, help, read) in families {
            head(&mut text, name, help, "counter");
            for (direction, threads) in directions {
                let sum: u64 = threads.iter().map(|counters| read(counters).get()).sum();
                line(
                    &mut text,
                    name,
                    &format!("{{direction=\"{direction}\"}}"),
                    sum,
                );
            }
        }
        head(&mut text, "dropped_frames", "Frames dropped.", "counter");
        for (reason, name) in Reason::ALL {
            let threads = self.sent.iter().chain(&self.received);
            let sum: u64 = threads.map(|counters| counters.dropped(reason)).sum();
            line(
                &mut text,
                "dropped_frames",
                &format!("{{reason=\"{name}\"}}"),
                sum,
            );
        }
        head(
            &mut text,
            "socket_overruns",
            "Messages the kernel dropped, for the sockets' buffers were full.",
            "counter",
        );
        let overruns = self.sockets.iter().map(|it| socket::overruns(it));
        // A socket that can't be asked is left out rather than made up.
        let sum: u64 = overruns.flatten().map(u64::from).sum();
        line(&mut text, "socket_overruns", "", sum);
        head(&mut text, "peers", "Other bubbles known.", "gauge");
        let peers = self.table.get().len() as u64;
        let _ = writeln!(text, "hpk_overlay_peers {peers}");
        text
    }
}

fn head(text: &mut String, name: &str, help: &str, kind: &str) {
    let suffix = if kind == "counter" { "_total" } else { "" };
    // Writing to a String doesn't fail.
    let _ = writeln!(text, "# HELP hpk_overlay_{name}{suffix} {help}");
    let _ = writeln!(text, "# TYPE hpk_overlay_{name}{suffix} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "hpk_overlay_{name}_total{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_summed_and_each_family_has_a_type() {
        let mut statistics = Statistics::new(SharedTable::new(Default::default()));
        for amount in [2, 3] {
            let counters = Arc::new(Counters::default());
            counters.frames.add(amount);
            counters.lost(Reason::NotFromPeer);
            statistics.received.push(counters);
        }
        let text = statistics.render();
        for line in [
            "hpk_overlay_frames_total{direction=\"received\"} 5",
            "hpk_overlay_frames_total{direction=\"sent\"} 0",
            "hpk_overlay_dropped_frames_total{reason=\"not_from_peer\"} 2",
            "hpk_overlay_peers 0",
            "# TYPE hpk_overlay_peers gauge",
            "# TYPE hpk_overlay_dropped_frames_total counter",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }
}
