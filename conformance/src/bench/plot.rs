//! The results as an SVG plot. Pure.
//!
//! A dot for the median ratio to the reference and a bar from the least to the greatest, on
//! a logarithmic axis, so that twice as fast and half as fast look alike; a short mark where
//! an aim lies.

use std::fmt::Write as _;

use super::results::{Block, Results};
use super::table::{figure, spread};

/// Pixels.
const WIDTH: f64 = 960.0;
const NAMES: f64 = 210.0;
const FIGURES: f64 = 250.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 24.0;
const MARGIN: f64 = 16.0;

/// The axis: where a ratio lies between the plot's left and right edge.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axis {
    /// Powers of ten at the edges.
    low: f64,
    high: f64,
}

impl Axis {
    /// Covers all ratios and 1, widened to steps of half a power of ten.
    fn over(ratios: impl Iterator<Item = f64>) -> Self {
        let mut axis = Self {
            low: -0.5,
            high: 0.5,
        };
        for power in ratios.filter(|ratio| *ratio > 0.0).map(f64::log10) {
            axis.low = axis.low.min((power * 2.0).floor() / 2.0);
            axis.high = axis.high.max((power * 2.0).ceil() / 2.0);
        }
        axis
    }

    /// A ratio of 0, or of a difference that came out negative, lies at the left edge.
    fn x(self, ratio: f64) -> f64 {
        let power = ratio.max(0.0).log10().clamp(self.low, self.high);
        let part = (power - self.low) / (self.high - self.low);
        NAMES + part * (WIDTH - NAMES - FIGURES)
    }

    /// Ratios to label: 1, 2 and 5 of each power of ten in sight.
    fn ticks(self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut power = self.low.floor();
        while power <= self.high {
            for digit in [1.0, 2.0, 5.0] {
                let tick = digit * 10f64.powf(power);
                let fits = (self.low - 1e-9..=self.high + 1e-9).contains(&tick.log10());
                if fits && (digit == 1.0 || self.high - self.low < 2.5) {
                    ticks.push(tick);
                }
            }
            power += 1.0;
        }
        ticks
    }
}

/// The plot as an SVG document. Text and lines take the page's colour, so it reads on dark
/// pages too.
pub fn render(results: &Results) -> String {
    let axis = Axis::over(results.blocks.iter().flat_map(|block| {
        let ratios = block.rows.iter().filter_map(|row| row.ratio.as_ref());
        ratios.flat_map(|ratio| [ratio.min, ratio.max])
    }));
    let mut body = String::new();
    let mut y = MARGIN + HEAD;
    let title = format!(
        "bench-{}: ratio to the reference, median and range of {} rounds (red: aim); {}, {}",
        results.suite, results.repeats, results.machine.commit, results.machine.date
    );
    text(&mut body, MARGIN, MARGIN + 12.0, "title", &title);
    if let Some(note) = &results.note {
        text(&mut body, MARGIN, y + 4.0, "note", note);
        y += HEAD;
    }
    y += 10.0;
    let top = y;
    let mut section = "";
    for block in &results.blocks {
        if block.section != section {
            section = block.section;
            y += HEAD;
            text(&mut body, MARGIN, y, "section", section);
            y += 6.0;
        }
        y = draw_block(&mut body, results, block, axis, y);
    }
    let mut grid = String::new();
    for tick in axis.ticks() {
        let class = if tick == 1.0 { "one" } else { "grid" };
        let x = axis.x(tick);
        let _ = writeln!(
            grid,
            r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{y:.1}"/>"#
        );
        for label in [top - 2.0, y + 14.0] {
            text(&mut grid, x, label, "tick", &short(tick));
        }
    }
    let height = y + 14.0 + MARGIN;
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}">
<style>
svg {{ color: #222; background: #fff }}
@media (prefers-color-scheme: dark) {{ svg {{ color: #ddd; background: #16181c }} }}
text {{ font: 12px sans-serif; fill: currentColor }}
.title, .section {{ font-weight: bold }} .note {{ font-style: italic }}
.tick {{ font-size: 10px; text-anchor: middle }} .name {{ text-anchor: end }} .metric {{ font-size: 11px; opacity: .75 }}
.grid {{ stroke: currentColor; opacity: .12 }} .one {{ stroke: currentColor; opacity: .55 }}
.range {{ stroke: #3b7dd8; stroke-width: 4; stroke-linecap: round; opacity: .45 }}
.median {{ fill: #3b7dd8 }} .aim {{ stroke: #d8573b; stroke-width: 2 }}
</style>
{grid}{body}</svg>
"#
    )
}

/// A metric's heading and its rows; gives the y of what follows.
fn draw_block(body: &mut String, results: &Results, block: &Block, axis: Axis, mut y: f64) -> f64 {
    y += ROW;
    let heading = format!(
        "{} [{}], {} is better, × {}",
        block.metric, block.unit, block.better, block.reference
    );
    text(body, MARGIN, y, "metric", &heading);
    for row in &block.rows {
        y += ROW;
        let middle = y - 4.0;
        text(body, NAMES - 10.0, y, "name", row.contender);
        let mut figures = row.spread.as_ref().map_or("failed".into(), spread);
        figures.push(' ');
        figures.push_str(block.unit);
        text(body, WIDTH - FIGURES + 14.0, y, "figures", &figures);
        if let Some(ratio) = &row.ratio {
            let (low, median, high) = (axis.x(ratio.min), axis.x(ratio.median), axis.x(ratio.max));
            let _ = writeln!(
                body,
                r#"<line class="range" x1="{low:.1}" x2="{high:.1}" y1="{middle:.1}" y2="{middle:.1}"/><circle class="median" cx="{median:.1}" cy="{middle:.1}" r="4"><title>{}</title></circle>"#,
                escape(&spread(ratio))
            );
        } else if row.contender == block.reference {
            let x = axis.x(1.0);
            let _ = writeln!(
                body,
                r#"<circle class="median" cx="{x:.1}" cy="{middle:.1}" r="2.5"/>"#
            );
        }
        for bound in results.marks(block, row.contender) {
            let x = axis.x(bound);
            let _ = writeln!(
                body,
                r#"<line class="aim" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}"/>"#,
                middle - 7.0,
                middle + 7.0
            );
        }
    }
    y + 4.0
}

fn short(tick: f64) -> String {
    let text = figure(tick);
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escape(text);
    // Writing to a String can't fail.
    let _ = writeln!(
        body,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::results::{Judged, Row};
    use crate::bench::statistics::Spread;

    #[test]
    fn the_axis_covers_all_ratios_and_one() {
        let axis = Axis::over([0.02, 1.5].into_iter());
        assert_eq!((axis.low, axis.high), (-2.0, 0.5));
        assert_eq!(axis.x(0.01), NAMES);
        assert_eq!((axis.x(0.0), axis.x(-1.0)), (NAMES, NAMES));
        assert!(axis.x(0.02) < axis.x(1.0) && axis.x(1.0) < WIDTH - FIGURES);
        assert!(axis.ticks().contains(&1.0));
    }

    #[test]
    fn ticks_are_written_short() {
        assert_eq!(
            [0.05, 1.0, 10.0, 100.0].map(short),
            ["0.05", "1", "10", "100"]
        );
    }

    #[test]
    fn every_contender_is_drawn_with_its_aim_and_names_are_escaped() {
        let row = |contender, ratio| Row {
            contender,
            values: vec![Some(1.0)],
            spread: Spread::of(&[1.0]),
            ratio,
        };
        let results = Results {
            suite: "net",
            note: Some("a < b".into()),
            machine: Machine::default(),
            repeats: 1,
            seconds: 1.0,
            blocks: vec![Block {
                scenario: "one-node",
                measure: "tcp-1",
                section: "One node",
                metric: "TCP",
                unit: "Gbit/s",
                better: "higher",
                reference: "bridge",
                rows: vec![row("bridge", None), row("veth", Spread::of(&[0.5]))],
            }],
            aims: vec![Judged {
                measure: "one-node/tcp-1".into(),
                metric: "TCP",
                contender: "veth",
                against: Some("bridge"),
                aim: "≥ 0.95".into(),
                bound: 0.95,
                measured: None,
            }],
            failures: Vec::new(),
        };
        let svg = render(&results);
        assert!(
            svg.contains(">veth</text>") && svg.contains("a &lt; b"),
            "{svg}"
        );
        assert_eq!(svg.matches(r#"class="aim""#).count(), 1);
        assert_eq!(svg.matches("<circle").count(), 2);
    }
}
