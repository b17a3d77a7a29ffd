//! What is written, as `man` and the shells themselves take it.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use hpk_manual::{MAN, programs, write};

fn written() -> tempfile::TempDir {
    let share = tempfile::tempdir().unwrap();
    write(share.path()).unwrap();
    share
}

fn run(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|e| panic!("{command:?}: {e} (scripts/deps installs it)"))
}

fn lines(command: &mut Command) -> Vec<String> {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What bash offers for the last of `words`.
fn bash(share: &Path, words: &[&str]) -> Vec<String> {
    let program = words[0];
    let file = share
        .join("bash-completion/completions")
        .join(format!("{program}.bash"));
    let script = format!(
        "source '{}'; shopt -s extdebug
         complete -p {program} >/dev/null || exit 1
         function=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
         COMP_WORDS=(\"$@\"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
         $function {program} \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    lines(
        Command::new("bash")
            .args(["--norc", "-c", &script, "bash"])
            .args(words),
    )
}

#[test]
fn every_program_and_subcommand_has_a_page_and_no_hidden_one() {
    let share = written();
    let pages = names(&share.path().join(MAN));
    for page in [
        "hpktainer.1",
        "hpktainer-run.1",
        "hpktainer-images-prune.1",
        "hpk-bubble.1",
        "hpk-bubble-doctor.1",
        "hpk-kubelet.1",
        "hpk-kubelet-ps.1",
        "hpk-net-daemon.1",
        "hpk-net-daemon-relay-serve.1",
    ] {
        assert!(pages.iter().any(|it| it == page), "no {page} in {pages:?}");
    }
    for hidden in ["keep-bubble", "supervise", "in-userns"] {
        assert!(!pages.iter().any(|it| it.contains(hidden)), "{hidden}");
    }
}

#[test]
fn every_page_has_a_name_and_a_line_that_says_what_it_is_for() {
    let share = written();
    let man = share.path().join(MAN);
    for page in names(&man) {
        let text = std::fs::read_to_string(man.join(&page)).unwrap();
        let name = text
            .split(".SH NAME\n")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        let (_, about) = name
            .split_once(" \\- ")
            .unwrap_or_else(|| panic!("{page}: {name}"));
        assert!(about.len() > 8, "{page}: {name}");
    }
}

#[test]
fn bash_offers_subcommands_options_and_values() {
    let share = written();
    let offered = bash(share.path(), &["hpktainer", "ru"]);
    assert_eq!(offered, ["run"]);
    assert_eq!(
        bash(share.path(), &["hpktainer", "run", "--env-f"]),
        ["--env-file"]
    );
    assert_eq!(
        bash(share.path(), &["hpktainer", "run", "--net", "no"]),
        ["none"]
    );
    let all = bash(share.path(), &["hpktainer", ""]);
    assert!(!all.iter().any(|it| it == "keep-bubble"), "{all:?}");
    assert!(bash(share.path(), &["hpk-bubble", "doc"]).contains(&"doctor".to_owned()));
    assert!(bash(share.path(), &["hpk-kubelet", "ins"]).contains(&"inspect".to_owned()));
}

#[test]
#[ignore = "needs mandoc, zsh and fish (scripts/deps installs them)"]
fn mandoc_zsh_and_fish_take_what_is_written() {
    let share = written();
    let man = share.path().join(MAN);
    for page in names(&man) {
        // Style apart: roff-rs writes what man(7) calls old.
        let mut lint = Command::new("mandoc");
        let output = run(lint
            .args(["-T", "lint", "-W", "error"])
            .arg(man.join(&page)));
        assert!(
            output.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        let text = lines(
            Command::new("mandoc")
                .args(["-T", "utf8"])
                .arg(man.join(&page)),
        );
        assert!(text.len() > 5, "{page}: {text:?}");
    }
    for program in programs() {
        let name = program.get_name();
        let zsh = share
            .path()
            .join("zsh/site-functions")
            .join(format!("_{name}"));
        lines(Command::new("zsh").args(["-f", "-n"]).arg(zsh));
    }
    let fish = share
        .path()
        .join("fish/vendor_completions.d/hpktainer.fish");
    let ask = format!("source '{}'; complete -C 'hpktainer ru'", fish.display());
    let offered = lines(Command::new("fish").args(["--no-config", "-c", &ask]));
    assert!(
        offered.iter().any(|it| it.starts_with("run\t")),
        "{offered:?}"
    );
}
