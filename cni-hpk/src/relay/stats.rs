//! Counters of the relay, and Prometheus's text of them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::{Attachment, Form};

/// One direction of an attachment.
#[derive(Debug, Default)]
pub struct Counters {
    pub frames: AtomicU64,
    /// Of the frames, without their virtio-net headers.
    pub bytes: AtomicU64,
    /// Frames that are to be cut by whoever receives them in the end.
    pub super_frames: AtomicU64,
    /// Frames the device wouldn't take.
    pub lost: AtomicU64,
    /// System calls that moved frames over the socket.
    pub batches: AtomicU64,
}

impl Counters {
    /// Of one writer; readers may see frame and bytes a moment apart.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// Both directions.
#[derive(Debug, Default)]
pub struct Both {
    pub from_pod: Counters,
    pub to_pod: Counters,
}

/// An attachment as `relay status` shows it.
#[derive(Debug)]
pub struct Shown<'a> {
    pub attachment: &'a Attachment,
    pub form: Form,
    pub joined: bool,
    pub counters: &'a Both,
}

type Field = fn(&Counters) -> &AtomicU64;

const SERIES: [(&str, &str, Field); 5] = [
    ("frames", "Frames moved, super-frames counted once", |c| {
        &c.frames
    }),
    ("bytes", "Bytes of the frames moved", |c| &c.bytes),
    ("super_frames", "Frames moved uncut", |c| &c.super_frames),
    ("lost", "Frames the device would not take", |c| &c.lost),
    (
        "batches",
        "System calls that moved frames over the socket",
        |c| &c.batches,
    ),
];

/// Prometheus's text format, version 0.0.4.
pub fn render(shown: &[Shown<'_>]) -> String {
    let mut text = String::new();
    let labels = |one: &Shown<'_>| {
        let Attachment {
            network,
            container_id,
            ifname,
        } = one.attachment;
        // An interface's name may have a quote in it.
        let ifname = ifname.replace('\\', "\\\\").replace('"', "\\\"");
        format!("network=\"{network}\",container=\"{container_id}\",interface=\"{ifname}\"")
    };
    text.push_str(
        "# HELP hpk_relay_joined Whether frames can move\n# TYPE hpk_relay_joined gauge\n",
    );
    for one in shown {
        let form = match one.form {
            Form::Descriptor => "descriptor",
            Form::Frames => "frames",
        };
        let _ = writeln!(
            text,
            "hpk_relay_joined{{{},form=\"{form}\"}} {}",
            labels(one),
            u8::from(one.joined)
        );
    }
    for (name, help, field) in SERIES {
        let _ = writeln!(
            text,
            "# HELP hpk_relay_{name}_total {help}\n# TYPE hpk_relay_{name}_total counter"
        );
        for one in shown {
            for (direction, counters) in [
                ("from_pod", &one.counters.from_pod),
                ("to_pod", &one.counters.to_pod),
            ] {
                let value = field(counters).load(Ordering::Relaxed);
                let _ = writeln!(
                    text,
                    "hpk_relay_{name}_total{{{},direction=\"{direction}\"}} {value}",
                    labels(one)
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_a_series_per_direction() {
        let attachment = Attachment {
            network: "hpk".to_owned(),
            container_id: "c1".to_owned(),
            ifname: "tap0".to_owned(),
        };
        let counters = Both::default();
        Counters::add(&counters.to_pod.frames, 7);
        let text = render(&[Shown {
            attachment: &attachment,
            form: Form::Frames,
            joined: true,
            counters: &counters,
        }]);
        assert!(text.contains(
            "hpk_relay_frames_total{network=\"hpk\",container=\"c1\",interface=\"tap0\",direction=\"to_pod\"} 7\n"
        ));
        assert!(text.contains("form=\"frames\"} 1\n"));
        assert_eq!(
            text.lines()
                .filter(|line| line.starts_with("# TYPE"))
                .count(),
            6
        );
    }
}
