//! What a host has and lacks: for people as a table, and as the check before a start.
//!
//! `observe` looks, `judge` and `space` decide; only the former touches the host.

mod judge;
mod observe;
mod space;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::image::{Found, Places};
use crate::{own_path, settings};

pub use judge::{Finding, Verdict};

/// Prints the table; the exit code is 1 when something essential lacks.
pub async fn doctor() -> Result<ExitCode> {
    let mut findings = judge::judge(&observe::observe());
    findings.push(judge::image(image().await));
    print!("{}", table(&findings));
    let missing = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Missing)
        .count();
    if missing > 0 {
        println!("\n{missing} of these must be had before HPK can run here.");
        return Ok(ExitCode::FAILURE);
    }
    println!("\nHPK can run here.");
    Ok(ExitCode::SUCCESS)
}

/// Which image a job would start from; what a registry has is not asked for.
async fn image() -> Result<Found> {
    let places = Places::from_env(&own_path()?, &settings::hpk_home()?);
    places.find().await
}

/// The check before a start: the first essential thing that lacks is the error. The image is `launch`'s matter.
pub fn require_essentials() -> Result<()> {
    let findings = judge::judge(&observe::observe());
    match findings
        .into_iter()
        .find(|finding| finding.verdict == Verdict::Missing)
    {
        Some(finding) => {
            let Finding {
                what, found, ask, ..
            } = &finding;
            bail!("{what}: {found}; {ask} (see {})", finding.link())
        }
        None => Ok(()),
    }
}

/// The findings as text, a line each, what to ask for below those that need it.
fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Fine => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        text.push_str(&format!(
            "{:<8} {:<18} {}\n",
            mark, finding.what, finding.found
        ));
        if !finding.ask.is_empty() {
            text.push_str(&format!("{:27} → {}\n", "", finding.ask));
        }
        if finding.verdict != Verdict::Fine {
            text.push_str(&format!("{:27} → see {}\n", "", finding.link()));
        }
    }
    text
}
