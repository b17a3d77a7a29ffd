//! The bubble's way to the world: pasta, or slirp4netns where there is no pasta. It runs on the
//! host, joins the bubble's network namespace by its init's PID, and, for the overlay's mode
//! `kernel`, forwards a UDP port into it. (The TCP ports are `forward`'s.)

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::files;
use crate::settings::UPLINK;

/// A UDP port of the host that leads into the bubble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpForward {
    pub host: u16,
    pub bubble: u16,
}

/// Addresses on the uplink, at their places in its /24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub network: Ipv4Net,
}

impl Addresses {
    fn at(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network.network()) | u32::from(last))
    }

    pub fn bubble(&self) -> Ipv4Addr {
        self.at(100)
    }

    fn gateway(&self) -> Ipv4Addr {
        self.at(2)
    }

    /// Questions to this address go to the host's resolver.
    pub fn dns(&self) -> Ipv4Addr {
        self.at(3)
    }
}

/// Which program it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    Pasta(PathBuf),
    Slirp4netns(PathBuf),
}

impl Program {
    /// HPK_UPLINK names one; else the better one that is there.
    pub fn find(path: &str) -> Result<Self> {
        let wanted = std::env::var("HPK_UPLINK").ok();
        let find = |name: &str| match &wanted {
            Some(wanted) if wanted != name => None,
            _ => files::find_program(name, path),
        };
        if let Some(pasta) = find("pasta") {
            return Ok(Self::Pasta(pasta));
        }
        match find("slirp4netns") {
            Some(slirp) => Ok(Self::Slirp4netns(slirp)),
            None => bail!("neither pasta nor slirp4netns is installed; ask for the package passt"),
        }
    }
}

/// What an uplink does; enough to start it anew.
#[derive(Debug, Clone)]
pub struct Uplink {
    pub program: Program,
    pub addresses: Addresses,
    pub forward: Option<UdpForward>,
    /// The bubble's init.
    pub pid: i32,
    /// Its folder on the host, for a socket.
    pub local: PathBuf,
}

/// The command line, and what slirp4netns' control socket is asked for.
fn plan(uplink: &Uplink) -> (Vec<String>, Option<String>) {
    match &uplink.program {
        Program::Pasta(_) => (plan_pasta(uplink), None),
        Program::Slirp4netns(_) => (
            plan_slirp4netns(uplink),
            uplink.forward.map(|forward| {
                serde_json::json!({"execute": "add_hostfwd", "arguments": {
                    "proto": "udp", "host_addr": "0.0.0.0", "host_port": forward.host,
                    "guest_addr": uplink.addresses.bubble().to_string(),
                    "guest_port": forward.bubble,
                }})
                .to_string()
            }),
        ),
    }
}

fn plan_pasta(uplink: &Uplink) -> Vec<String> {
    let addresses = uplink.addresses;
    let udp = match uplink.forward {
        Some(forward) => format!("{}:{}", forward.host, forward.bubble),
        None => "none".into(),
    };
    [
        "--foreground",
        "--quiet",
        "--ipv4-only",
        "--config-net",
        "--no-map-gw",
        "--tcp-ns=none",
        "--udp-ns=none",
        "--tcp-ports=none",
        &format!("--udp-ports={udp}"),
        &format!("--ns-ifname={UPLINK}"),
        &format!("--address={}", addresses.bubble()),
        "--netmask=24",
        &format!("--gateway={}", addresses.gateway()),
        &format!("--dns-forward={}", addresses.dns()),
        &uplink.pid.to_string(),
    ]
    .map(str::to_owned)
    .into()
}

fn plan_slirp4netns(uplink: &Uplink) -> Vec<String> {
    let pid = uplink.pid;
    [
        "--configure",
        "--mtu=65520",
        "--disable-host-loopback",
        &format!("--cidr={}", uplink.addresses.network),
        &format!("--userns-path=/proc/{pid}/ns/user"),
        &format!("--api-socket={}", api_socket(&uplink.local).display()),
        &pid.to_string(),
        UPLINK,
    ]
    .map(str::to_owned)
    .into()
}

fn api_socket(local: &Path) -> PathBuf {
    local.join("slirp.sock")
}

impl Uplink {
    /// Starts it; when this returns, it runs, and slirp4netns also forwards.
    pub async fn start(&self, log: File) -> Result<Child> {
        let (arguments, request) = plan(self);
        let program = match &self.program {
            Program::Pasta(program) | Program::Slirp4netns(program) => program,
        };
        let errors = log.try_clone().context("duplicating the uplink's log")?;
        // One left by a slirp4netns that was killed would be in the new one's way.
        let _ = std::fs::remove_file(api_socket(&self.local));
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("running {}", program.display()))?;
        if let Some(request) = request {
            self.ask(&request, &mut child).await?;
        }
        Ok(child)
    }

    async fn ask(&self, request: &str, child: &mut Child) -> Result<()> {
        let mut stream = loop {
            match UnixStream::connect(api_socket(&self.local)).await {
                Ok(stream) => break stream,
                Err(_) if child.try_wait().context("awaiting slirp4netns")?.is_none() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error).context("slirp4netns ended before it listened"),
            }
        };
        stream
            .write_all(request.as_bytes())
            .await
            .context("asking slirp4netns")?;
        stream.shutdown().await.context("asking slirp4netns")?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .context("slirp4netns' answer")?;
        let parsed: serde_json::Value = serde_json::from_str(&answer)
            .with_context(|| format!("slirp4netns' answer {answer:?}"))?;
        if !parsed["error"].is_null() {
            bail!("slirp4netns: {request}: {}", parsed["error"]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink(program: Program) -> Uplink {
        Uplink {
            program,
            addresses: Addresses {
                network: "10.0.2.0/24".parse().unwrap(),
            },
            forward: Some(UdpForward {
                host: 8473,
                bubble: 8472,
            }),
            pid: 42,
            local: "/tmp/x".into(),
        }
    }

    #[test]
    fn pasta_forwards_only_what_it_is_told_and_keeps_the_hosts_loopback_closed() {
        let mut uplink = uplink(Program::Pasta("/usr/bin/pasta".into()));
        let line = plan_pasta(&uplink).join(" ");
        for option in [
            "--tcp-ports=none --udp-ports=8473:8472",
            "--no-map-gw --tcp-ns=none --udp-ns=none",
            "--address=10.0.2.100",
        ] {
            assert!(line.contains(option), "{line}");
        }
        uplink.forward = None;
        assert!(plan_pasta(&uplink).contains(&"--udp-ports=none".to_owned()));
    }

    #[test]
    fn slirp4netns_is_asked_for_the_forward() {
        let program = Program::Slirp4netns("/usr/bin/slirp4netns".into());
        let (arguments, request) = plan(&uplink(program));
        assert!(arguments.contains(&"--disable-host-loopback".to_owned()));
        assert!(request.unwrap().contains(r#""proto":"udp""#));
    }
}
