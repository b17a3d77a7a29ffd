//! A pull's progress: bars on a terminal, one line per stage elsewhere (none with `--quiet`).

use std::io::IsTerminal as _;
use std::time::Duration;

use hpk_images::{Event, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows a pull.
#[derive(Debug)]
pub struct Bars {
    bar: ProgressBar,
    lines: bool,
}

impl Bars {
    /// Bars on a terminal; lines on stderr where it is none.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = match terminal && !quiet {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        bar.enable_steady_tick(Duration::from_millis(120));
        Self {
            bar,
            lines: !terminal && !quiet,
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn stage(&self, message: String, total: u64) {
        if self.lines {
            eprintln!("{message}");
        }
        let style =
            ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
        if let Ok(style) = style {
            self.bar.set_style(style);
        }
        self.bar.set_message(message);
        self.bar.set_position(0);
        self.bar.set_length(total);
    }
}

impl Progress for Bars {
    fn event(&self, event: Event) {
        match event {
            Event::Resolved { layers, bytes, .. } => {
                self.stage(format!("downloading {layers} layers"), bytes)
            }
            Event::Downloaded { bytes } | Event::Packed { bytes } => self.bar.inc(bytes),
            Event::Waiting { holder } => {
                self.stage(format!("waiting for {holder}, which pulls it already"), 0)
            }
            Event::Retrying { digest, cause } => {
                self.bar
                    .suspend(|| eprintln!("hpktainer: trying {digest} again: {cause}"));
            }
            Event::Packing { bytes } => self.stage("packing".to_owned(), bytes),
            Event::Stored { bytes } if self.lines => eprintln!("stored, {bytes} bytes"),
            _ => {}
        }
    }
}
