//! Which streams a caller asks for, in the query of /exec and /attach.

use super::super::query::Query;

/// The streams asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    /// Never with `tty`: a terminal has one output.
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// `None`: no stream at all is asked for.
    pub fn parse(query: &Query) -> Option<Self> {
        let is_one = |name| query.get(name) == Some("1");
        let tty = is_one("tty");
        let wanted = Self {
            stdin: is_one("input"),
            stdout: is_one("output"),
            stderr: is_one("error") && !tty,
            tty,
        };
        (wanted.stdin || wanted.stdout || wanted.stderr).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Option<Wanted> {
        Wanted::parse(&Query::parse(query))
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let wanted = parse("command=sh&input=1&output=1&error=1&tty=1");
        assert_eq!(
            wanted,
            Some(Wanted {
                stdin: true,
                stdout: true,
                stderr: false,
                tty: true
            })
        );
    }

    #[test]
    fn at_least_one_stream_is_needed() {
        assert_eq!(parse("command=sh&tty=1"), None);
        assert_eq!(parse("output=true"), None);
    }
}
