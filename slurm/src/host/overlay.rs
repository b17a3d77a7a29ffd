//! The overlay's daemon on the host, for the overlay's mode `host`: it opens its UDP socket here
//! and enters the bubble's user and network namespace with it.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

use crate::bubble::overlay_options;
use crate::bubble::spec::{BubbleSpec, OverlayMode};
use crate::{own_path, ports};

/// What it takes to start it, also anew.
#[derive(Debug, Clone)]
pub struct Overlay {
    pub program: PathBuf,
    pub spec: BubbleSpec,
    /// The bubble's init.
    pub pid: i32,
    pub local: PathBuf,
}

/// HPK_OVERLAY: `host`, or `kernel`, whose UDP port other users of the host may take over or send
/// to (docs/files.md). Unset: `host` where it can run, else `kernel`, with the reason.
pub fn mode() -> Result<(OverlayMode, Option<String>)> {
    match std::env::var("HPK_OVERLAY").as_deref() {
        Err(_) => match probe(Path::new(TUN)) {
            Ok(()) => Ok((OverlayMode::Host, None)),
            Err(reason) => Ok((kernel()?, Some(reason))),
        },
        Ok("host") => match probe(Path::new(TUN)) {
            Ok(()) => Ok((OverlayMode::Host, None)),
            Err(reason) => bail!("HPK_OVERLAY=host: {reason}"),
        },
        Ok("kernel") => Ok((kernel()?, None)),
        Ok(other) => bail!("HPK_OVERLAY={other} is neither kernel nor host"),
    }
}

fn kernel() -> Result<OverlayMode> {
    Ok(OverlayMode::Kernel {
        udp_port: ports::free_overlay_port()?,
    })
}

const TUN: &str = "/dev/net/tun";

/// What mode `host` needs of the host itself; the rest the bubble needs as well.
fn probe(tun: &Path) -> std::result::Result<(), String> {
    let opened = File::options().read(true).write(true).open(tun);
    let opened = opened.map_err(|error| format!("{}: {error}", tun.display()))?;
    // A plain file of that name is no way to a TAP.
    match opened.metadata().map(|it| it.file_type().is_char_device()) {
        Ok(true) => Ok(()),
        _ => Err(format!("{} is not a device", tun.display())),
    }
}

/// The arguments, with the paths as the host has them.
fn plan(overlay: &Overlay, udp_port: u16) -> Vec<String> {
    let local = &overlay.local;
    let mut options = overlay_options(&overlay.spec, local, &local.join("run"));
    options.extend([
        ("mode", "host".to_owned()),
        ("udp-port", udp_port.to_string()),
        ("enter-pid", overlay.pid.to_string()),
    ]);
    let options = options
        .iter()
        .map(|(name, value)| format!("--{name}={value}"));
    ["overlay".to_owned()].into_iter().chain(options).collect()
}

impl Overlay {
    /// The daemon beside this program, or on `search_path`.
    pub fn find(spec: &BubbleSpec, pid: i32, local: &Path, search_path: &str) -> Result<Self> {
        let beside = own_path()?.with_file_name("hpk-net-daemon");
        let program = hpk_uplink::find_program(&beside.display().to_string(), search_path)
            .or_else(|| hpk_uplink::find_program("hpk-net-daemon", search_path))
            .with_context(|| format!("{} is missing (HPK_OVERLAY=host)", beside.display()))?;
        Ok(Self {
            program,
            spec: spec.clone(),
            pid,
            local: local.to_owned(),
        })
    }

    /// Starts it with a UDP port that is free now: it tells the other bubbles which it has.
    pub fn start(&self, log: File) -> Result<Child> {
        let errors = log.try_clone().context("duplicating the overlay's log")?;
        Command::new(&self.program)
            .args(plan(self, ports::free_overlay_port()?))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("running {}", self.program.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_tun_device_is_told_so() {
        let reason = probe(Path::new("/nowhere/net/tun")).unwrap_err();
        assert!(reason.contains("/nowhere/net/tun"), "{reason}");
        let plain = tempfile::NamedTempFile::new().unwrap();
        let reason = probe(plain.path()).unwrap_err();
        assert!(reason.contains("not a device"), "{reason}");
    }
}
