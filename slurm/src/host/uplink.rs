//! The bubble's way to the world: pasta, or slirp4netns where there is no pasta. It runs on the
//! host, joins the bubble's network namespace by its init's PID, and forwards a few ports into it.

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

/// A port of the host that leads into the bubble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub protocol: Protocol,
    pub host: u16,
    pub bubble: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
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
    pub forwards: Vec<Forward>,
    /// The bubble's init.
    pub pid: i32,
    /// Its folder on the host, for sockets and logs.
    pub local: PathBuf,
}

/// The command line, and, for slirp4netns, what its control socket is asked for.
pub fn plan(uplink: &Uplink) -> (Vec<String>, Vec<String>) {
    let addresses = uplink.addresses;
    let pid = uplink.pid.to_string();
    match &uplink.program {
        Program::Pasta(_) => {
            let mut arguments: Vec<String> = [
                "--foreground",
                "--quiet",
                "--ipv4-only",
                "--config-net",
                "--no-map-gw",
                "--tcp-ns",
                "none",
                "--udp-ns",
                "none",
                "--ns-ifname",
                UPLINK,
            ]
            .map(str::to_owned)
            .into();
            for (option, value) in [
                ("--address", addresses.bubble().to_string()),
                ("--netmask", "24".into()),
                ("--gateway", addresses.gateway().to_string()),
                ("--dns-forward", addresses.dns().to_string()),
            ] {
                arguments.push(option.into());
                arguments.push(value);
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ports: Vec<_> = uplink
                    .forwards
                    .iter()
                    .filter(|forward| forward.protocol == protocol)
                    .map(|forward| format!("{}:{}", forward.host, forward.bubble))
                    .collect();
                let option = match protocol {
                    Protocol::Tcp => "--tcp-ports",
                    Protocol::Udp => "--udp-ports",
                };
                arguments.push(option.into());
                arguments.push(if ports.is_empty() {
                    "none".into()
                } else {
                    ports.join(",")
                });
            }
            arguments.push(pid);
            (arguments, Vec::new())
        }
        Program::Slirp4netns(_) => {
            let arguments = vec![
                "--configure".into(),
                "--mtu=65520".into(),
                "--disable-host-loopback".into(),
                format!("--cidr={}", addresses.network),
                format!("--userns-path=/proc/{pid}/ns/user"),
                format!("--api-socket={}", api_socket(&uplink.local).display()),
                pid,
                UPLINK.into(),
            ];
            let requests = uplink
                .forwards
                .iter()
                .map(|forward| {
                    serde_json::json!({"execute": "add_hostfwd", "arguments": {
                        "proto": match forward.protocol { Protocol::Tcp => "tcp", Protocol::Udp => "udp" },
                        "host_addr": "0.0.0.0", "host_port": forward.host,
                        "guest_addr": addresses.bubble().to_string(), "guest_port": forward.bubble,
                    }})
                    .to_string()
                })
                .collect();
            (arguments, requests)
        }
    }
}

fn api_socket(local: &Path) -> PathBuf {
    local.join("slirp.sock")
}

/// Where the uplink program's own messages go, in the node-local folder.
pub fn log_file(local: &Path) -> PathBuf {
    local.join("log").join("uplink.log")
}

impl Uplink {
    /// Starts it; when this returns, it runs, and for slirp4netns also forwards.
    pub async fn start(&self) -> Result<Child> {
        let (arguments, requests) = plan(self);
        let program = match &self.program {
            Program::Pasta(program) | Program::Slirp4netns(program) => program,
        };
        let path = log_file(&self.local);
        let log = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
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
        for request in requests {
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
            forwards: vec![
                Forward {
                    protocol: Protocol::Tcp,
                    host: 7443,
                    bubble: 6443,
                },
                Forward {
                    protocol: Protocol::Udp,
                    host: 8473,
                    bubble: 8472,
                },
            ],
            pid: 42,
            local: "/tmp/x".into(),
        }
    }

    #[test]
    fn pasta_forwards_only_what_it_is_told_and_keeps_the_hosts_loopback_closed() {
        let (arguments, requests) = plan(&uplink(Program::Pasta("/usr/bin/pasta".into())));
        let line = arguments.join(" ");
        assert!(
            line.contains("--tcp-ports 7443:6443 --udp-ports 8473:8472"),
            "{line}"
        );
        assert!(
            line.contains("--no-map-gw --tcp-ns none --udp-ns none"),
            "{line}"
        );
        assert!(line.contains("--address 10.0.2.100"), "{line}");
        assert!(requests.is_empty());
    }

    #[test]
    fn slirp4netns_is_asked_for_each_forward() {
        let program = Program::Slirp4netns("/usr/bin/slirp4netns".into());
        let (arguments, requests) = plan(&uplink(program));
        assert!(arguments.contains(&"--disable-host-loopback".to_owned()));
        assert_eq!(requests.len(), 2);
        assert!(requests[1].contains(r#""proto":"udp""#), "{}", requests[1]);
    }
}
