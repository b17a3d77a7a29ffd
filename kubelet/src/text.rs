//! An error with its causes on one line, for messages that people read in events and statuses.

use std::error::Error;

/// `what: why: why that`. A cause whose text the line already ends with is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// What a shim said, without the frame its protocol puts around it; else the error with its causes.
pub fn of_shim(error: &hpk_shim_client::Error) -> String {
    match error.shim_message() {
        Some(said) => said.to_owned(),
        None => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    #[error("can't open the door")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_after_a_colon() {
        let error = Outer(std::io::Error::other("it is locked"));
        assert_eq!(chain(&error), "can't open the door: it is locked");
    }
}
