//! Manual pages and the shells' completions, written from the programs' own command lines.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

/// Where `man` looks, below `share`.
pub const MAN: &str = "man/man1";
/// Where the shells look.
pub const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/site-functions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// The programs that people call by hand.
pub fn programs() -> [Command; 4] {
    [
        hpktainer::command(),
        hpk_bubble::command(),
        hpk_kubelet::command(),
        cni_hpk::daemon::command(),
    ]
}

/// Writes all into `share`: a page for each program and subcommand, and a file for each program and shell.
pub fn write(share: &Path) -> Result<()> {
    let man = share.join(MAN);
    make(&man)?;
    for program in programs() {
        let completed = &mut without_hidden(&program);
        clap_mangen::generate_to(program, &man)
            .with_context(|| format!("writing manual pages into {}", man.display()))?;
        let name = completed.get_name().to_owned();
        for (shell, folder) in COMPLETIONS {
            let folder = share.join(folder);
            make(&folder)?;
            clap_complete::generate_to(shell, completed, &name, &folder)
                .with_context(|| format!("writing completions into {}", folder.display()))?;
        }
    }
    Ok(())
}

/// What completions are made of; they would offer hidden subcommands, too.
fn without_hidden(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
    // Clap wants names that live as long as the program does, which is not long.
    let keep = |text: &str| -> &'static str { text.to_owned().leak() };
    let bare = Command::new(keep(command.get_name()))
        .about(command.get_about().cloned().unwrap_or_default());
    let versioned = match command.get_version() {
        Some(version) => bare.version(keep(version)),
        None => bare,
    };
    versioned
        .args(command.get_arguments().filter(|it| !it.is_hide_set()))
        .groups(command.get_groups())
        .subcommands(shown.map(without_hidden))
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}
