//! The overlay's daemon on the host, for the overlay's mode `host`: it opens its UDP socket here
//! and enters the bubble's user and network namespace with it.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::{Child, Command};

use crate::bubble::spec::{BubbleSpec, OverlayMode};

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
        Err(_) => Ok(match probe(Path::new(TUN)) {
            Ok(()) => (OverlayMode::Host, None),
            Err(reason) => (OverlayMode::Kernel, Some(reason)),
        }),
        Ok("host") => match probe(Path::new(TUN)) {
            Ok(()) => Ok((OverlayMode::Host, None)),
            Err(reason) => bail!("HPK_OVERLAY=host: {reason}"),
        },
        Ok("kernel") => Ok((OverlayMode::Kernel, None)),
        Ok(other) => bail!("HPK_OVERLAY={other} is neither kernel nor host"),
    }
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
pub fn plan(overlay: &Overlay) -> Vec<String> {
    let local = &overlay.local;
    let pki = |name: &str| local.join("pki").join(name).display().to_string();
    let spec = &overlay.spec;
    let mut arguments = vec!["overlay".to_owned()];
    for (option, value) in [
        ("etcd-endpoints", spec.etcd.clone()),
        ("etcd-cacert", pki("etcd-ca.crt")),
        ("etcd-cert", pki("etcd-client.crt")),
        ("etcd-key", pki("etcd-client.key")),
        ("node", spec.node.clone()),
        ("host-ip", spec.host_ip.to_string()),
        (
            "subnet-file",
            local.join("run/flannel/subnet.env").display().to_string(),
        ),
        (
            "state-file",
            local.join("run/hpk/overlay.json").display().to_string(),
        ),
        ("mode", "host".into()),
        ("vni", spec.vni.to_string()),
        ("udp-port", spec.overlay_port.to_string()),
        ("mtu", spec.link_mtu.to_string()),
        ("enter-pid", overlay.pid.to_string()),
    ] {
        arguments.push(format!("--{option}={value}"));
    }
    arguments
}

pub fn log_file(local: &Path) -> PathBuf {
    local.join("logs").join("hpk-net-daemon.log")
}

impl Overlay {
    pub fn start(&self) -> Result<Child> {
        let path = log_file(&self.local);
        let log = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let errors = log.try_clone().context("duplicating the overlay's log")?;
        Command::new(&self.program)
            .args(plan(self))
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
