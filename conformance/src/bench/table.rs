//! The results as text. Pure.

use std::fmt::Write as _;

use super::results::{Block, Results, Row};
use super::statistics::Spread;

/// Three significant digits, without an exponent.
pub fn figure(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    #[allow(clippy::cast_possible_truncation)]
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0);
    format!("{value:.decimals$}")
}

/// "median (min–max)"
pub fn spread(spread: &Spread) -> String {
    format!(
        "{} ({}–{})",
        figure(spread.median),
        figure(spread.min),
        figure(spread.max)
    )
}

/// Every figure, the aims, and what failed.
pub fn render(results: &Results) -> String {
    let mut text = String::new();
    let width = names_width(results);
    let mut section = "";
    for block in &results.blocks {
        if block.section != section {
            section = block.section;
            line(&mut text, format_args!("\n{section}"));
        }
        block_lines(&mut text, block, width);
    }
    if !results.aims.is_empty() {
        line(&mut text, format_args!("\nAims"));
    }
    for aim in &results.aims {
        let beside = aim
            .against
            .map_or(String::new(), |against| format!(" / {against}"));
        let measured = aim.measured.as_ref().map_or("not measured".into(), spread);
        line(
            &mut text,
            format_args!(
                "  {} {}: {}{beside}: aim {}: {measured}",
                aim.measure, aim.metric, aim.contender, aim.aim
            ),
        );
    }
    for failure in &results.failures {
        line(&mut text, format_args!("\nFailed: {failure}"));
    }
    text
}

fn names_width(results: &Results) -> usize {
    let rows = results.blocks.iter().flat_map(|block| &block.rows);
    rows.map(|row| row.contender.chars().count())
        .max()
        .unwrap_or(0)
}

fn block_lines(text: &mut String, block: &Block, width: usize) {
    line(
        text,
        format_args!(
            "  {} [{}], {} is better ({}/{})",
            block.metric, block.unit, block.better, block.scenario, block.measure
        ),
    );
    for row in &block.rows {
        let values = row.spread.as_ref().map_or("failed".into(), spread);
        line(
            text,
            format_args!(
                "    {:<width$}  {values:<26} {}",
                row.contender,
                relation(row, block.reference)
            ),
        );
    }
}

fn relation(row: &Row, reference: &str) -> String {
    match &row.ratio {
        Some(ratio) => format!("{} × {reference}", spread(ratio)),
        None if row.contender == reference => "reference".into(),
        None => String::new(),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let mut one = String::new();
    // Writing to a String can't fail.
    let _ = one.write_fmt(arguments);
    text.push_str(one.trim_end_matches(' '));
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::results::Judged;

    #[test]
    fn figures_have_three_digits_that_count() {
        let shown: Vec<_> = [0.0, 0.012_345, 0.98765, 12.345, 123.4, 123_456.0, -1.5]
            .map(figure)
            .into();
        assert_eq!(
            shown,
            ["0", "0.0123", "0.988", "12.3", "123", "123456", "-1.50"]
        );
    }

    #[test]
    fn the_table_names_reference_ratio_aim_and_failure() {
        let row = |contender, values: [f64; 2], ratio| Row {
            contender,
            values: values.map(Some).to_vec(),
            spread: Spread::of(&values),
            ratio,
        };
        let results = Results {
            suite: "net",
            note: None,
            machine: Machine::default(),
            repeats: 2,
            seconds: 1.0,
            blocks: vec![Block {
                scenario: "one-node",
                measure: "tcp-1",
                section: "One node",
                metric: "TCP, 1 stream",
                unit: "Gbit/s",
                better: "higher",
                reference: "bridge",
                rows: vec![
                    row("bridge", [10.0, 20.0], None),
                    row("veth", [9.0, 19.0], Spread::of(&[0.9, 0.95])),
                ],
            }],
            aims: vec![Judged {
                measure: "one-node/tcp-1".into(),
                metric: "TCP, 1 stream",
                contender: "veth",
                against: Some("bridge"),
                aim: "≥ 0.5".into(),
                bound: 0.5,
                measured: Spread::of(&[0.29, 0.31, 0.33]),
            }],
            failures: vec!["one-node/tcp-1 veth: broken".into()],
        };
        let text = render(&results);
        for part in [
            "One node\n  TCP, 1 stream [Gbit/s], higher is better (one-node/tcp-1)\n",
            "    bridge  15.0 (10.0–20.0)           reference\n",
            "    veth    14.0 (9.00–19.0)           0.925 (0.900–0.950) × bridge\n",
            "veth / bridge: aim ≥ 0.5: 0.310 (0.290–0.330)\n",
            "Failed: one-node/tcp-1 veth: broken\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
