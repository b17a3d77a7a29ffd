//! Ends and clean-ups go on where one part fails, and say all that failed.

use anyhow::{Result, bail};

/// Makes every attempt; the error has all their errors.
pub fn all(attempts: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let errors: Vec<String> = attempts
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    bail!("{}", errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_is_made_and_every_error_told() {
        let mut made = Vec::new();
        let result = all(["a", "b", "c"].into_iter().map(|name| {
            made.push(name);
            match name {
                "b" => Ok(()),
                _ => bail!("no {name}"),
            }
        }));
        assert_eq!(result.unwrap_err().to_string(), "no a; no c");
        assert_eq!(made, ["a", "b", "c"]);
    }
}
