//! A network namespace's way to the world without root: pasta, or slirp4netns where there is no pasta. Both run on the
//! host, join the namespace by a process that is in it, and make an interface there.
//!
//! What is decided is here; starting and watching the program is the caller's.
//!
//! - [`Program`]: which one there is
//! - [`Addresses`], [`routes`]: networks that aren't the host's own
//! - [`Uplink`]: the command line
//! - [`backoff`]: when what has ended may start again

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod backoff;
pub mod routes;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

/// The interface's name in the namespace.
pub const INTERFACE: &str = "uplink0";

/// Bytes a packet on the interface may have.
pub const MTU: u32 = 65520;

/// Why there is no uplink.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No program.
    #[error("neither pasta nor slirp4netns is installed; ask for the package passt")]
    NoProgram,
    /// HPK_UPLINK names one that isn't there.
    #[error("HPK_UPLINK={0}: no such program (pasta or slirp4netns)")]
    NotThis(String),
    /// The host's routes.
    #[error("reading {path}")]
    Routes {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A UDP port of the host that leads into the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpForward {
    pub host: u16,
    pub inside: u16,
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

    /// The interface's own.
    pub fn inside(&self) -> Ipv4Addr {
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
    /// HPK_UPLINK names one; else the better one along `path`.
    pub fn find(path: &str) -> Result<Self, Error> {
        let wanted = std::env::var("HPK_UPLINK")
            .ok()
            .filter(|name| !name.is_empty());
        Self::choose(wanted, |name| find_program(name, path))
    }

    fn choose(
        wanted: Option<String>,
        find: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, Error> {
        let found = |name: &str| match &wanted {
            Some(wanted) if wanted != name => None,
            _ => find(name),
        };
        if let Some(pasta) = found("pasta") {
            return Ok(Self::Pasta(pasta));
        }
        match found("slirp4netns") {
            Some(slirp) => Ok(Self::Slirp4netns(slirp)),
            None => Err(wanted.map_or(Error::NoProgram, Error::NotThis)),
        }
    }

    /// The program's file.
    pub fn file(&self) -> &Path {
        match self {
            Self::Pasta(file) | Self::Slirp4netns(file) => file,
        }
    }
}

/// The first executable of that name on `path` (as PATH is); a name with a slash stands for itself.
pub fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    let executable = |file: &Path| {
        nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|file| executable(file));
    }
    path.split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(dir).join(name))
        .find(|file| executable(file))
}

/// What an uplink does; enough to start it anew.
#[derive(Debug, Clone)]
pub struct Uplink {
    pub program: Program,
    pub addresses: Addresses,
    pub forward: Option<UdpForward>,
    /// A process in the namespace, whose user namespace owns it.
    pub pid: i32,
    /// Where slirp4netns listens for requests.
    pub api_socket: PathBuf,
    /// slirp4netns outlives its namespace: it shall end when its stdin does. (pasta sees that the process has gone.)
    pub ends_with_stdin: bool,
}

impl Uplink {
    /// The command line, and what slirp4netns' control socket is asked for.
    pub fn plan(&self) -> (Vec<String>, Option<String>) {
        match &self.program {
            Program::Pasta(_) => (self.plan_pasta(), None),
            Program::Slirp4netns(_) => (self.plan_slirp4netns(), self.request()),
        }
    }

    fn request(&self) -> Option<String> {
        let forward = self.forward?;
        let request = serde_json::json!({"execute": "add_hostfwd", "arguments": {
            "proto": "udp", "host_addr": "0.0.0.0", "host_port": forward.host,
            "guest_addr": self.addresses.inside().to_string(),
            "guest_port": forward.inside,
        }});
        Some(request.to_string())
    }

    fn plan_pasta(&self) -> Vec<String> {
        let addresses = self.addresses;
        let udp = match self.forward {
            Some(forward) => format!("{}:{}", forward.host, forward.inside),
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
            &format!("--ns-ifname={INTERFACE}"),
            &format!("--address={}", addresses.inside()),
            "--netmask=24",
            &format!("--gateway={}", addresses.gateway()),
            &format!("--dns-forward={}", addresses.dns()),
            &self.pid.to_string(),
        ]
        .map(str::to_owned)
        .into()
    }

    fn plan_slirp4netns(&self) -> Vec<String> {
        let pid = self.pid;
        let mut arguments = [
            "--configure",
            &format!("--mtu={MTU}"),
            "--disable-host-loopback",
            &format!("--cidr={}", self.addresses.network),
            &format!("--userns-path=/proc/{pid}/ns/user"),
        ]
        .map(str::to_owned)
        .to_vec();
        if self.forward.is_some() {
            arguments.push(format!("--api-socket={}", self.api_socket.display()));
        }
        if self.ends_with_stdin {
            arguments.push("--exit-fd=0".to_owned());
        }
        arguments.extend([pid.to_string(), INTERFACE.to_owned()]);
        arguments
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
                inside: 8472,
            }),
            pid: 42,
            api_socket: "/tmp/x/slirp.sock".into(),
            ends_with_stdin: false,
        }
    }

    #[test]
    fn pasta_forwards_only_what_it_is_told_and_keeps_the_hosts_loopback_closed() {
        let mut uplink = uplink(Program::Pasta("/usr/bin/pasta".into()));
        let line = uplink.plan().0.join(" ");
        for option in [
            "--tcp-ports=none --udp-ports=8473:8472",
            "--no-map-gw --tcp-ns=none --udp-ns=none",
            "--address=10.0.2.100",
        ] {
            assert!(line.contains(option), "{line}");
        }
        uplink.forward = None;
        assert!(uplink.plan().0.contains(&"--udp-ports=none".to_owned()));
    }

    #[test]
    fn slirp4netns_is_asked_for_the_forward_and_ends_when_told() {
        let mut uplink = uplink(Program::Slirp4netns("/usr/bin/slirp4netns".into()));
        let (arguments, request) = uplink.plan();
        assert!(arguments.contains(&"--disable-host-loopback".to_owned()));
        assert!(arguments.contains(&"--api-socket=/tmp/x/slirp.sock".to_owned()));
        assert!(request.unwrap().contains(r#""proto":"udp""#));
        (uplink.forward, uplink.ends_with_stdin) = (None, true);
        let (arguments, request) = uplink.plan();
        assert!(request.is_none() && arguments.contains(&"--exit-fd=0".to_owned()));
    }

    #[test]
    fn the_better_program_is_taken_unless_one_is_named() {
        type Find = fn(&str) -> Option<PathBuf>;
        let both: Find = |name| Some(PathBuf::from("/bin").join(name));
        let only: Find = |name| (name == "slirp4netns").then(|| "/bin/s".into());
        let none: Find = |_| None;
        let choose = |wanted, find: Find| Program::choose(wanted, find);
        assert_eq!(
            choose(None, both).unwrap(),
            Program::Pasta("/bin/pasta".into())
        );
        assert_eq!(
            choose(None, only).unwrap(),
            Program::Slirp4netns("/bin/s".into())
        );
        let named = choose(Some("slirp4netns".into()), both).unwrap();
        assert_eq!(named, Program::Slirp4netns("/bin/slirp4netns".into()));
        let error = choose(None, none).unwrap_err().to_string();
        assert!(
            error.contains("pasta") && error.contains("slirp4netns"),
            "{error}"
        );
        assert!(
            choose(Some("x".into()), both)
                .unwrap_err()
                .to_string()
                .contains("HPK_UPLINK=x")
        );
    }

    #[test]
    fn a_program_that_is_not_on_the_path_is_not_found() {
        assert!(find_program("no-such-program-4711", "/usr/bin:/bin").is_none());
        assert!(find_program("/no/such/program", "/usr/bin").is_none());
        assert!(find_program("sh", "/no/such/dir:/usr/bin:/bin").is_some());
    }
}
