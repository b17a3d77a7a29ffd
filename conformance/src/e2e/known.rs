//! The list of tests that are known to fail: the rows of the tables in docs/conformance.md
//! whose first cell is a test's whole name in backquotes and whose second says why.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::outcome::{Outcome, Run};

/// Test and reason.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, String>);

/// What the run and the list don't agree on.
#[derive(Debug)]
pub struct Verdict {
    /// Failed, and not listed.
    unlisted: Vec<String>,
    /// Listed, and passed.
    mended: Vec<String>,
}

impl Known {
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut known = BTreeMap::new();
        for line in text.lines() {
            let Some(row) = line.strip_prefix("| `") else {
                continue;
            };
            let Some((test, reason)) = row.split_once("` |") else {
                bail!("the row {line:?} has no second cell");
            };
            let reason = reason.trim().trim_end_matches('|').trim();
            if reason.is_empty() {
                bail!("no reason is given why {test:?} fails");
            }
            if known.insert(test.to_owned(), reason.to_owned()).is_some() {
                bail!("{test:?} is listed twice");
            }
        }
        Ok(Self(known))
    }

    /// A listed test that didn't run says nothing.
    pub fn judge(&self, run: &Run) -> Verdict {
        let select = |is: fn(&Outcome) -> bool, listed: bool| {
            let tests = run.tests.iter();
            tests
                .filter(|(name, outcome)| is(outcome) && self.0.contains_key(*name) == listed)
                .map(|(name, _)| name.clone())
                .collect()
        };
        Verdict {
            unlisted: select(|outcome| matches!(outcome, Outcome::Failed(_)), false),
            mended: select(|outcome| *outcome == Outcome::Passed, true),
        }
    }
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.unlisted.is_empty() && self.mended.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unlisted, mended) = (self.unlisted.len(), self.mended.len());
        writeln!(
            f,
            "{unlisted} failed that are not listed, {mended} passed that are listed"
        )?;
        for test in &self.mended {
            writeln!(f, "Passed although listed: {test}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIST: &str = "# Title\n\n| test | reason |\n|---|---|\n\
        | `[sig-node] a \"quoted\" b` | needs CAP_SYS_ADMIN of the host |\n\
        | `[sig-node] c` | no cgroup |\n";

    fn run() -> Run {
        let spec = |name: &str, state: &str| {
            format!(
                r#"{{"LeafNodeText":"[sig-node] {name}","LeafNodeType":"It","State":"{state}","Failure":{{"Message":"m"}}}}"#
            )
        };
        let json = format!(
            r#"[{{"SpecReports":[{},{}]}}]"#,
            spec("c", "passed"),
            spec("d", "failed")
        );
        Run::parse(json.as_bytes(), Duration::ZERO).unwrap()
    }

    #[test]
    fn an_unlisted_failure_and_a_listed_pass_are_told() {
        let verdict = Known::parse(LIST).unwrap().judge(&run());
        assert_eq!(verdict.unlisted, ["[sig-node] d"]);
        assert_eq!(verdict.mended, ["[sig-node] c"]);
        assert!(!verdict.holds());
    }

    #[test]
    fn a_row_without_a_reason_is_refused() {
        let error = Known::parse("| `[sig-node] a` | |").unwrap_err();
        assert!(error.to_string().contains("[sig-node] a"));
    }
}
