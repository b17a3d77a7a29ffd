//! The rules as a chain of iptables' table `nat`, written by
//! `iptables-restore` in one transaction.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use super::{Family, Masquerade};
use crate::netlink::Error;

/// Longest name of a chain is 28 bytes; a bridge's is 15.
fn chain(bridge: &str) -> String {
    format!("HPK-{bridge}")
}

/// The programs, best first: where the kernel has no nftables, a plain
/// `iptables` may be a front of just that.
fn programs(family: Family) -> [&'static str; 2] {
    match family {
        Family::Ipv4 => ["iptables-legacy", "iptables"],
        Family::Ipv6 => ["ip6tables-legacy", "ip6tables"],
    }
}

/// Whether some iptables knows the table `nat` here.
pub fn is_usable() -> bool {
    save(Family::Ipv4).is_ok()
}

/// The comments of the rules in the chain of `bridge`, if packets come there;
/// none otherwise.
pub fn read(bridge: &str) -> Result<Vec<String>, Error> {
    let mut comments = Vec::new();
    for family in Family::ALL {
        match save(family) {
            Ok((_, text)) => comments.extend(read_chain(&text, &chain(bridge))),
            // A bubble without IPv6 has none of its rules either.
            Err(_) if family == Family::Ipv6 => {}
            Err(error) => return Err(Error::new("read NAT rules of", bridge, error)),
        }
    }
    Ok(comments)
}

/// Makes `rules` the only ones in the chain of `bridge`, in a transaction for
/// each family.
pub fn replace(bridge: &str, rules: &[Masquerade]) -> Result<(), Error> {
    let fail = |error| Error::new("write NAT rules of", bridge, error);
    let chain = chain(bridge);
    for family in Family::ALL {
        let of_family: Vec<&Masquerade> = rules.iter().filter(|it| it.family() == family).collect();
        let (program, before) = match save(family) {
            Ok(found) => found,
            Err(_) if of_family.is_empty() => continue,
            Err(error) => return Err(fail(error)),
        };
        if of_family.is_empty() && !before.contains(&declaration(&chain)) {
            continue;
        }
        let text = restore(
            &chain,
            &of_family,
            before.lines().any(|it| it == jump(&chain)),
        );
        run(&format!("{program}-restore"), &["--noflush"], &text).map_err(fail)?;
    }
    Ok(())
}

fn declaration(chain: &str) -> String {
    format!(":{chain} ")
}

fn jump(chain: &str) -> String {
    format!("-A POSTROUTING -j {chain}")
}

/// A chain that is declared is emptied.
fn restore(chain: &str, rules: &[&Masquerade], jumps: bool) -> String {
    let mut text = format!("*nat\n{}- [0:0]\n", declaration(chain));
    // Writing to a String can't fail.
    for rule in rules {
        let (subnet, multicast) = (rule.subnet, rule.family().multicast());
        for network in &rule.networks {
            let _ = writeln!(text, "-A {chain} -s {subnet} -d {network} -j RETURN");
        }
        let _ = writeln!(
            text,
            "-A {chain} -s {subnet} ! -d {multicast} -m comment --comment \"{rule}\" -j MASQUERADE --random-fully"
        );
    }
    if !jumps {
        text.push_str(&jump(chain));
        text.push('\n');
    }
    text.push_str("COMMIT\n");
    text
}

/// The program that works, and what `-save` prints of it.
fn save(family: Family) -> io::Result<(&'static str, String)> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for program in programs(family) {
        match run(&format!("{program}-save"), &["-t", "nat"], "") {
            Ok(text) => return Ok((program, text)),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program}: {}: {}",
        output.status,
        said.trim()
    )))
}

fn read_chain(text: &str, chain: &str) -> Vec<String> {
    if !text.lines().any(|line| line == jump(chain)) {
        return Vec::new();
    }
    let prefix = format!("-A {chain} ");
    text.lines()
        .filter(|line| line.starts_with(&prefix) && line.contains("-j MASQUERADE"))
        // A rule that isn't ours: differs from all we might want.
        .map(|line| comment(line).unwrap_or_default())
        .collect()
}

fn comment(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("--comment \"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Masquerade {
        Masquerade {
            subnet: "10.244.3.0/24".parse().unwrap(),
            networks: vec!["10.244.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn what_is_restored_is_read_back() {
        let text = restore("HPK-b", &[&rule()], false);
        assert_eq!(read_chain(&text, "HPK-b"), [rule().to_string()]);
        assert_eq!(text.matches("POSTROUTING").count(), 1);
    }

    #[test]
    fn a_chain_that_nothing_jumps_to_counts_as_none() {
        let text = restore("HPK-b", &[&rule()], true);
        assert_eq!(read_chain(&text, "HPK-b"), Vec::<String>::new());
    }
}
