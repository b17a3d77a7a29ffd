//! What ginkgo's JSON report says (github.com/onsi/ginkgo/v2/types, `Report`).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The tests that ran, by name.
#[derive(Debug)]
pub struct Run {
    pub tests: BTreeMap<String, Outcome>,
    took: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// With what it said.
    Skipped(String),
    Failed(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

impl Run {
    pub fn parse(json: &[u8], took: Duration) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(json).context("ginkgo's report")?;
        let specs = suites.into_iter().filter_map(|suite| suite.spec_reports);
        let tests = specs.flatten().filter_map(Spec::into_test).collect();
        Ok(Self { tests, took })
    }

    pub fn is_empty(&self) -> bool {
        self.tests.is_empty()
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.values().filter(|outcome| is(outcome)).count()
    }
}

impl Spec {
    /// `None` for what was not selected, and for set-up that passed.
    fn into_test(self) -> Option<(String, Outcome)> {
        let message = self.failure.message;
        let outcome = match self.state.as_str() {
            "passed" => Outcome::Passed,
            // Left out by focus or skip: no reason given.
            "skipped" | "pending" if message.is_empty() => return None,
            "skipped" | "pending" => Outcome::Skipped(message),
            _ => Outcome::Failed(message),
        };
        if self.leaf_node_type != "It" && outcome == Outcome::Passed {
            return None;
        }
        let mut words = self.container_hierarchy_texts.unwrap_or_default();
        words.push(match self.leaf_node_type.as_str() {
            "It" => self.leaf_node_text,
            set_up => format!("[{set_up}]"),
        });
        Some((words.join(" "), outcome))
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.tests {
            match outcome {
                Outcome::Passed => {}
                Outcome::Skipped(why) => writeln!(f, "Skipped  {name}\n         {}", first(why))?,
                Outcome::Failed(why) => writeln!(f, "Failed   {name}\n         {}", first(why))?,
            }
        }
        write!(
            f,
            "{} passed, {} failed, {} skipped, in {:.0} s",
            self.count(|outcome| *outcome == Outcome::Passed),
            self.count(|outcome| matches!(outcome, Outcome::Failed(_))),
            self.count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            self.took.as_secs_f64()
        )
    }
}

fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{"SpecReports":[
      {"ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeText":"should run","LeafNodeType":"It","State":"passed"},
      {"ContainerHierarchyTexts":["[sig-node] Pods"],"LeafNodeText":"should end","LeafNodeType":"It","State":"failed","Failure":{"Message":"timed out\nmore"}},
      {"ContainerHierarchyTexts":["[sig-x] Y"],"LeafNodeText":"other","LeafNodeType":"It","State":"skipped"},
      {"ContainerHierarchyTexts":["[sig-x] Y"],"LeafNodeText":"gpu","LeafNodeType":"It","State":"skipped","Failure":{"Message":"no GPU"}},
      {"ContainerHierarchyTexts":null,"LeafNodeText":"","LeafNodeType":"SynchronizedBeforeSuite","State":"passed"}
    ]}]"#;

    #[test]
    fn only_what_ran_is_counted_and_set_up_only_when_it_fails() {
        let run = Run::parse(REPORT.as_bytes(), Duration::ZERO).unwrap();
        let tests: Vec<_> = run.tests.into_iter().collect();
        assert_eq!(
            tests,
            [
                (
                    "[sig-node] Pods should end".to_owned(),
                    Outcome::Failed("timed out\nmore".to_owned())
                ),
                ("[sig-node] Pods should run".to_owned(), Outcome::Passed),
                (
                    "[sig-x] Y gpu".to_owned(),
                    Outcome::Skipped("no GPU".to_owned())
                ),
            ]
        );
    }

    #[test]
    fn a_failed_set_up_is_a_failure() {
        let report = REPORT.replace(
            r#""SynchronizedBeforeSuite","State":"passed""#,
            r#""SynchronizedBeforeSuite","State":"failed""#,
        );
        let run = Run::parse(report.as_bytes(), Duration::ZERO).unwrap();
        assert!(run.tests.contains_key("[SynchronizedBeforeSuite]"));
    }
}
