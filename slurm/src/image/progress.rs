//! A fetch as lines in a job's output: what begins, and each tenth of it that is done.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hpk_images::{Event, Progress};

/// Says it on standard output.
#[derive(Debug, Default)]
pub struct Lines(Mutex<Stage>);

/// What is under way.
#[derive(Debug, Default)]
struct Stage {
    /// To be said when there is something to do: the image may be in the store already.
    pending: Option<String>,
    what: &'static str,
    done: u64,
    total: u64,
    stored: bool,
}

impl Lines {
    /// Whether the image came into the store just now.
    pub fn stored(&self) -> bool {
        self.stage().stored
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Lines {
    fn event(&self, event: Event) {
        for line in self.stage().take(event) {
            println!("hpk: {line}");
        }
    }
}

impl Stage {
    /// The lines to say.
    fn take(&mut self, event: Event) -> Vec<String> {
        let line = match event {
            Event::Resolved { layers, bytes, .. } => {
                self.begin("fetched", bytes);
                self.pending = Some(format!("fetching {layers} layers, {} MB", mb(bytes)));
                None
            }
            Event::Packing { bytes } => {
                self.begin("packed", bytes);
                Some(format!("packing {} MB into a squashfs", mb(bytes)))
            }
            Event::Downloaded { bytes } | Event::Packed { bytes } => {
                let first = self.pending.take();
                return first.into_iter().chain(self.go_on(bytes)).collect();
            }
            Event::Waiting { holder } => Some(format!("{holder} fetches it already: waiting")),
            Event::Retrying { digest, cause } => Some(format!("trying {digest} again: {cause}")),
            Event::Stored { bytes } => {
                self.stored = true;
                Some(format!("stored, {} MB", mb(bytes)))
            }
            _ => None,
        };
        line.into_iter().collect()
    }

    fn begin(&mut self, what: &'static str, total: u64) {
        (self.what, self.total, self.done) = (what, total, 0);
    }

    fn go_on(&mut self, bytes: u64) -> Option<String> {
        let before = self.tenths();
        self.done = self.done.saturating_add(bytes);
        let tenths = self.tenths();
        (tenths > before).then(|| {
            let (what, done, total) = (self.what, mb(self.done), mb(self.total));
            format!("{what} {} %, {done} of {total} MB", tenths * 10)
        })
    }

    fn tenths(&self) -> u64 {
        let done = self.done.min(self.total).saturating_mul(10);
        done.checked_div(self.total).unwrap_or(0)
    }
}

fn mb(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenth_is_said_once() {
        let mut stage = Stage::default();
        let bytes = 50_000_000;
        let begun = stage.take(Event::Packing { bytes });
        assert_eq!(begun, ["packing 50 MB into a squashfs"]);
        let mut said = Vec::new();
        for _ in 0..50 {
            said.extend(stage.take(Event::Packed { bytes: 1_000_000 }));
        }
        assert_eq!(said.len(), 10, "{said:?}");
        assert_eq!(said[0], "packed 10 %, 5 of 50 MB");
        assert_eq!(said[9], "packed 100 %, 50 of 50 MB");
    }

    #[test]
    fn what_is_in_the_store_already_is_not_said_to_be_fetched() {
        let mut stage = Stage::default();
        let resolved = Event::Resolved {
            digest: "sha256:0".into(),
            layers: 2,
            bytes: 100_000_000,
        };
        assert!(stage.take(resolved).is_empty());
        let first = stage.take(Event::Downloaded { bytes: 1 });
        assert_eq!(first, ["fetching 2 layers, 100 MB"]);
        assert!(stage.take(Event::Downloaded { bytes: 1 }).is_empty());
    }

    #[test]
    fn an_empty_image_is_no_division_by_nothing() {
        let mut stage = Stage::default();
        stage.begin("packed", 0);
        assert_eq!(stage.go_on(0), None);
    }
}
