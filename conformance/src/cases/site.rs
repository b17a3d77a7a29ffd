//! What a user brings to a site: the tarballs, with no registry to be had, and what `make develop` copies over ssh.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::jobs::is_whole;
use super::{Context, SIZE};
use crate::cluster::{self, Cluster, DEPLOYED, home, tarball};
use crate::testbed::{Output, Testbed};

/// What is done while no registry is to be had.
fn without_registry<T>(testbed: &Testbed, work: impl FnOnce() -> Result<T>) -> Result<T> {
    testbed.cut("registry")?;
    let done = work();
    testbed.heal("registry")?;
    done
}

/// Unpacked as a user does it; three nodes start with no registry, and, once there is one again, run a pod. sbatch hands on
/// nothing of the caller's environment, as some sites have it by SBATCH_EXPORT.
fn starts_from(testbed: &Testbed, tarball: &str) -> Result<()> {
    home(testbed, &format!("cd && rm -rf hpk && tar -xzf {tarball}"))?;
    has_manuals(testbed)?;
    let options = format!("{SIZE} --export=NONE");
    let start = || Cluster::start_from(testbed, DEPLOYED, 3, &options);
    let cluster = without_registry(testbed, start)?;
    let log = cluster::log(testbed, "hpc", &cluster.job)?;
    let whole = is_whole(testbed, &cluster);
    for words in [
        "the programs are those in /home/hpc/hpk/bin",
        "the bubble's image is /home/hpc/hpk/bin/hpk-bubble.sif",
    ] {
        ensure!(log.contains(words), "not {words:?}, but:\n{log}");
    }
    whole
}

/// Where man and a shell look, and what bash makes of it.
fn has_manuals(testbed: &Testbed) -> Result<()> {
    let offered = home(
        testbed,
        "cd ~/hpk/share && ls man/man1/hpktainer-run.1 man/man1/hpk-bubble-doctor.1 zsh/site-functions/_hpktainer \
             fish/vendor_completions.d/hpk-kubelet.fish >&2 || exit 1
         source bash-completion/completions/hpktainer.bash
         COMP_WORDS=(hpktainer ru) COMP_CWORD=1 && _hpktainer hpktainer ru hpktainer && echo ${COMPREPLY[*]}",
    )?;
    ensure!(offered == "run\n", "bash offers {offered:?}");
    Ok(())
}

/// What `make dist` and `make dist-airgapped` make.
pub fn each_tarball_is_all_that_a_user_needs_without_a_registry(
    context: &mut Context,
) -> Result<()> {
    let testbed = &context.testbed;
    let started = ["", "-airgapped"].iter().try_for_each(|form| {
        let tarball = tarball(form);
        starts_from(testbed, &tarball).with_context(|| tarball)
    });
    home(testbed, "rm -rf ~/hpk")?;
    started
}

/// The commands are those in the head of mirror.list, as they stand there.
pub fn the_images_of_the_air_gapped_tarball_are_loaded_as_its_list_says(
    context: &mut Context,
) -> Result<()> {
    let testbed = &context.testbed;
    home(
        testbed,
        &format!(
            "cd && rm -rf hpk && tar -xzf {} hpk/images hpk/bin",
            tarball("-airgapped")
        ),
    )?;
    let seen = (|| {
        let loaded = home(
            testbed,
            "set -eu; cd ~/hpk/images; sed -n 's/^#   //p' mirror.list | \
             sed 's,REGISTRY,registry.hpk.test:5000/site,' >load; grep -q registry.hpk.test load; sh -eu load; \
             grep -v '^#' mirror.list | while read -r archive name digest; do \
               skopeo inspect --raw docker://registry.hpk.test:5000/site/$name | sha256sum | \
                 sed \"s,  -,,; s,^,$name sha256:,\"; done",
        )?;
        let wanted = home(
            testbed,
            "grep -v '^#' ~/hpk/images/mirror.list | cut -d' ' -f2-",
        )?;
        let has: BTreeSet<&str> = loaded
            .lines()
            .filter(|line| line.contains("sha256:"))
            .collect();
        let wanted: BTreeSet<&str> = wanted.lines().collect();
        ensure!(
            has.is_superset(&wanted) && wanted.len() > 1,
            "the registry has {has:?}, the list says {wanted:?}"
        );
        let pulled = without_registry(testbed, || {
            home(
                testbed,
                "cd ~/hpk/images && ~/hpk/bin/hpktainer pull --quiet oci-archive:hpk-pause.tar && \
                 ~/hpk/bin/hpktainer images --quiet",
            )
        })?;
        ensure!(
            pulled
                .lines()
                .any(|line| line.starts_with("localhost/hpk-pause:")),
            "hpktainer has {pulled:?}"
        );
        Ok(())
    })();
    home(testbed, "rm -rf ~/hpk")?;
    seen
}

/// `make develop` less the building, on this machine.
fn develop(testbed: &Testbed, ssh: &str) -> Result<Output> {
    let output = Command::new("timeout")
        .args([
            "-k",
            "5",
            "240",
            "make",
            "--no-print-directory",
            "develop-copy",
        ])
        .args(["HOSTS=node1 hpc@node2", &format!("HPK_SSH={ssh}")])
        .current_dir(testbed.checkout()?)
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::null())
        .output()
        .context("running make develop-copy")?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// An ssh that breaks off after 3 MB of what it is to send.
fn broken_ssh(config: &str) -> Result<tempfile::TempPath> {
    let mut file = tempfile::NamedTempFile::new().context("making a file")?;
    write!(
        file,
        "#!/bin/sh\nhead -c 3000000 | exec ssh -F {config} \"$@\"\n"
    )
    .and_then(|()| {
        file.as_file()
            .set_permissions(Permissions::from_mode(0o700))
    })
    .context("writing an ssh that breaks off")?;
    Ok(file.into_temp_path())
}

/// The two hosts share a home.
pub fn what_make_develop_copies_is_what_starts(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    home(
        testbed,
        "set -eu; cd; rm -rf hpk .hpk/images; mkdir -p hpk/bin .hpk/images; \
         for f in hpk/bin/hpk-bubble hpk/bin/hpk-bubble.sif .hpk/images/hpk-mine.tar .hpk/images/hpk-bubble.sif; do \
           echo old >$f; done; chmod 755 hpk/bin/hpk-bubble; \
         cp /hpk/bin/images/hpk-pause.tar .hpk/images/mine.tar",
    )?;
    let seen = copied(testbed);
    home(testbed, "rm -rf ~/hpk ~/.hpk/images")?;
    seen
}

fn copied(testbed: &Testbed) -> Result<()> {
    const LISTED: &str = "cd; ls -A hpk hpk/bin .hpk/images; sha256sum hpk/bin/hpk-bubble";
    let config = testbed.ssh_config()?;
    let before = home(testbed, LISTED)?;
    let broken = broken_ssh(&config)?;
    let output = develop(testbed, &broken.display().to_string())?;
    ensure!(
        output.status != 0 && output.stderr.contains("node1: copying failed"),
        "a copy that was broken off: {output:?}"
    );
    let after = home(testbed, LISTED)?;
    ensure!(
        before == after,
        "a copy that was broken off changed {before} to {after}"
    );

    let ssh = format!("ssh -F {config}");
    let output = develop(testbed, &ssh)?;
    ensure!(output.status == 0, "make develop: {output:?}");
    ensure!(
        output.stderr.contains("hpc@node2: 0 of "),
        "the second host, with the same home, was sent something: {output:?}"
    );
    let there = home(testbed, "cd; ls -A .hpk/images; ls -A hpk; ls -A hpk/bin")?;
    let there: BTreeSet<&str> = there.lines().collect();
    for (name, wanted) in [
        ("hpk-bubble.tar", true),
        ("mine.tar", true),
        ("hpk.slurm", true),
        ("hpktainer", true),
        ("hpk-mine.tar", true),
        ("hpk-bubble.sif", false),
    ] {
        ensure!(
            there.contains(name) == wanted,
            "{name}: {wanted}, of {there:?}"
        );
    }
    let kept = [".hpk-bubble.old", ".hpk-bubble.sif.old"];
    ensure!(
        kept.iter().all(|name| there.contains(name)),
        "what was replaced is not kept for clusters that run from it: {there:?}"
    );
    ensure!(
        there
            .iter()
            .all(|name| kept.contains(name)
                || !name.starts_with('.') && !name.starts_with("develop.")),
        "something half-copied is left: {there:?}"
    );
    let options = format!("{SIZE} --export=ALL,HPK_DEV=1");
    let cluster = Cluster::start_from(testbed, DEPLOYED, 2, &options)?;
    let log = cluster::log(testbed, "hpc", &cluster.job)?;
    let whole = is_whole(testbed, &cluster);
    for words in [
        "the programs are those in /home/hpc/hpk/bin",
        " in /home/hpc/.hpk/images/hpk-bubble.tar (HPK_DEV=1)",
    ] {
        ensure!(log.contains(words), "not {words:?}, but:\n{log}");
    }
    whole
}
