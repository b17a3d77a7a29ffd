//! The table of cases and their outcomes.

use std::time::Duration;

use crate::cases::{Case, Outcome};

#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    subject: &'static str,
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

impl Report {
    /// Records a case and prints its line at once.
    pub fn add(&mut self, case: &Case, (outcome, took): (Outcome, Duration)) {
        let row = Row {
            subject: case.subject,
            name: case.name,
            outcome,
            took,
        };
        println!("{}", line(&row));
        self.rows.push(row);
    }

    pub fn passed(&self) -> bool {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_))) == 0
            && self.count(|outcome| matches!(outcome, Outcome::Passed)) > 0
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.rows.iter().filter(|row| is(&row.outcome)).count()
    }

    /// The whole table again, the failed ones last with their causes.
    pub fn print(&self) {
        println!("\nCases");
        for row in &self.rows {
            println!("{}", line(row));
        }
        println!(
            "\n{} passed, {} failed, {} skipped",
            self.count(|outcome| matches!(outcome, Outcome::Passed)),
            self.count(|outcome| matches!(outcome, Outcome::Failed(_))),
            self.count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        );
    }
}

fn line(row: &Row) -> String {
    let outcome = match &row.outcome {
        Outcome::Passed => "Passed".to_owned(),
        Outcome::Skipped(reason) => format!("Skipped({reason})"),
        Outcome::Failed(cause) => format!("Failed: {cause}"),
    };
    format!(
        "{:<10} {:<66} {:>6.1} s  {outcome}",
        row.subject,
        row.name,
        row.took.as_secs_f64()
    )
}
