//! `-p`: a port of the host (or, in a bubble, of the bubble) that leads into the container.
//!
//! The socket that listens belongs to the network namespace in which hpktainer was started; on a host it is bound before
//! the bubble's namespaces are entered, and handed on. What it accepts is carried by a thread that has gone into the
//! container's namespace, where it connects to the container's address: so it works over every datapath and uplink, without
//! any privilege but over the container. The price is Docker's userland proxy's: the program sees its own address as the
//! peer's.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::network::runtime_in;

/// Numbers of the listening sockets, for the program that goes on in the namespaces.
pub const VARIABLE: &str = "HPKTAINER_PUBLISHED";

/// How long an exchange of datagrams is remembered without any.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// How many clients of a UDP port are remembered: each takes a descriptor, and a sender's address can be forged.
const UDP_CLIENTS: usize = 256;
/// After a failed accept: most often there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const DATAGRAM: usize = 65536;

/// The protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// One `-p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Where it listens; port 0 stands for any free one.
    pub host: SocketAddr,
    /// In the container.
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for Publish {
    type Err = String;

    /// Takes `[[ADDRESS:]HOST_PORT:]PORT[/tcp|/udp]`, an IPv6 address in brackets, the protocol in either case, as Docker
    /// does; but without an address it is 127.0.0.1, not 0.0.0.0: hosts are shared with other users and their networks.
    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(format!("protocol {protocol:?} is neither tcp nor udp")),
        };
        let number = |port: &str| {
            let fault = || format!("{port:?} is no port (ranges are not taken)");
            port.parse::<u16>().map_err(|_| fault())
        };
        let (host, port) = match ports.rsplit_once(':') {
            None => ("", ports),
            Some((host, port)) => (host, port),
        };
        let (address, host_port) = match host.rsplit_once(':') {
            None => ("", host),
            Some((address, host_port)) => (address, host_port),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let address = match address {
            "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            text => text
                .parse()
                .map_err(|_| format!("{text:?} is no IP address"))?,
        };
        let host_port = if host_port.is_empty() {
            0
        } else {
            number(host_port)?
        };
        let port = number(port)?;
        if port == 0 {
            return Err("port 0 of the container".to_owned());
        }
        Ok(Self {
            host: SocketAddr::new(address, host_port),
            port,
            protocol,
        })
    }
}

impl std::fmt::Display for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}->{}/{protocol}", self.host, self.port)
    }
}

/// A published port with its socket.
#[derive(Debug)]
pub struct Bound {
    publish: Publish,
    socket: OwnedFd,
}

impl Bound {
    /// With the port that was given for port 0.
    pub fn publish(&self) -> anyhow::Result<Publish> {
        let address = match self.publish.protocol {
            Protocol::Tcp => self.tcp()?.local_addr(),
            Protocol::Udp => self.udp()?.local_addr(),
        };
        Ok(Publish {
            host: address.context("asking for a published port's number")?,
            ..self.publish
        })
    }

    fn tcp(&self) -> anyhow::Result<TcpListener> {
        Ok(self
            .socket
            .try_clone()
            .context("duplicating a socket")?
            .into())
    }

    fn udp(&self) -> anyhow::Result<UdpSocket> {
        Ok(self
            .socket
            .try_clone()
            .context("duplicating a socket")?
            .into())
    }
}

/// Binds them all in this network namespace.
pub fn bind(all: &[Publish]) -> anyhow::Result<Vec<Bound>> {
    let bind = |publish: &Publish| -> anyhow::Result<Bound> {
        let bound: io::Result<OwnedFd> = match publish.protocol {
            Protocol::Tcp => TcpListener::bind(publish.host).map(Into::into),
            Protocol::Udp => UdpSocket::bind(publish.host).map(Into::into),
        };
        let socket = bound.with_context(|| format!("publishing {publish}"))?;
        Ok(Bound {
            publish: *publish,
            socket,
        })
    };
    all.iter().map(bind).collect()
}

/// Lets the sockets through exec; gives [`VARIABLE`]'s value.
pub fn hand_on(all: &[Bound]) -> anyhow::Result<String> {
    let mut numbers = Vec::new();
    for bound in all {
        fcntl(&bound.socket, FcntlArg::F_SETFD(FdFlag::empty()))
            .with_context(|| format!("handing on {}", bound.publish))?;
        numbers.push(bound.socket.as_raw_fd().to_string());
    }
    Ok(numbers.join(","))
}

/// The sockets that were handed on, or new ones.
pub fn take(all: &[Publish]) -> anyhow::Result<Vec<Bound>> {
    let Some(numbers) = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()) else {
        return bind(all);
    };
    let numbers: Vec<RawFd> = numbers
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{VARIABLE}={numbers}"))?;
    if numbers.len() != all.len() {
        bail!(
            "{VARIABLE} has {} sockets for {} ports",
            numbers.len(),
            all.len()
        );
    }
    let mut bound = Vec::new();
    for (number, publish) in numbers.into_iter().zip(all) {
        // SAFETY: `hand_on` of the program before left this descriptor open for us alone; nothing else here knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .with_context(|| format!("taking over {publish}"))?;
        bound.push(Bound {
            publish: *publish,
            socket,
        });
    }
    Ok(bound)
}

/// Carries what comes to `ip` in the namespace at `netns`, until this process ends.
pub fn serve(netns: &Path, bound: Vec<Bound>, ip: IpAddr) -> anyhow::Result<()> {
    if bound.is_empty() {
        return Ok(());
    }
    let netns = netns.to_owned();
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new()
        .name("publish".to_owned())
        .spawn(move || match runtime_in(&netns) {
            Err(error) => drop(tell.send(Err(error))),
            Ok(runtime) => runtime.block_on(carry_all(bound, ip, tell)),
        })
        .context("starting the thread of published ports")?;
    told.recv()
        .context("waiting for the thread of published ports")?
}

async fn carry_all(bound: Vec<Bound>, ip: IpAddr, tell: mpsc::Sender<anyhow::Result<()>>) {
    let start = |bound: &Bound| -> anyhow::Result<()> {
        let to = SocketAddr::new(ip, bound.publish.port);
        match bound.publish.protocol {
            Protocol::Tcp => {
                let listener = bound.tcp()?;
                listener
                    .set_nonblocking(true)
                    .context("preparing a socket")?;
                let listener = tokio::net::TcpListener::from_std(listener);
                tokio::spawn(carry_tcp(listener.context("preparing a socket")?, to));
            }
            Protocol::Udp => {
                let socket = bound.udp()?;
                socket.set_nonblocking(true).context("preparing a socket")?;
                let socket = tokio::net::UdpSocket::from_std(socket);
                tokio::spawn(carry_udp(socket.context("preparing a socket")?, to));
            }
        }
        Ok(())
    };
    let started = bound.iter().try_for_each(start);
    let failed = started.is_err();
    // Whoever started us waits.
    let _ = tell.send(started);
    if !failed {
        std::future::pending::<()>().await;
    }
}

async fn carry_tcp(listener: tokio::net::TcpListener, to: SocketAddr) {
    loop {
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, %to, "accepting for a published port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let carried = async {
                let mut server = tokio::net::TcpStream::connect(to).await?;
                // Each side has its own idea of when to wait for more.
                client.set_nodelay(true)?;
                server.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            };
            if let Err(error) = carried.await {
                tracing::debug!(%error, %to, "a published connection ended");
            }
        });
    }
}

/// A socket towards the container for each client: its answers go back to that one.
#[derive(Debug, Default)]
struct Clients {
    of: HashMap<SocketAddr, Client>,
    /// Datagrams so far.
    asked: u64,
}

#[derive(Debug)]
struct Client {
    server: Arc<tokio::net::UdpSocket>,
    answers: AbortHandle,
    /// Which datagram was its last.
    asked: u64,
}

impl Clients {
    fn known(&mut self, address: SocketAddr) -> Option<Arc<tokio::net::UdpSocket>> {
        self.asked += 1;
        let client = self.of.get_mut(&address)?;
        client.asked = self.asked;
        Some(Arc::clone(&client.server))
    }

    /// In place of the one that asked longest ago, where there are as many as may be.
    fn add(
        &mut self,
        address: SocketAddr,
        server: Arc<tokio::net::UdpSocket>,
        answers: AbortHandle,
    ) {
        let last = self.of.iter().min_by_key(|(_, client)| client.asked);
        if let Some(last) = last.map(|(address, _)| *address)
            && self.of.len() >= UDP_CLIENTS
            && let Some(gone) = self.of.remove(&last)
        {
            gone.answers.abort();
        }
        let asked = self.asked;
        let client = Client {
            server,
            answers,
            asked,
        };
        self.of.insert(address, client);
    }
}

async fn carry_udp(socket: tokio::net::UdpSocket, to: SocketAddr) {
    let socket = Arc::new(socket);
    let clients = Arc::default();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let carried = async {
            let (length, client) = socket.recv_from(&mut buffer).await?;
            let server = reach(&clients, &socket, client, to).await?;
            server.send(&buffer[..length]).await
        };
        // A port that nobody listens on refuses; that is the client's to find out.
        if let Err(error) = carried.await {
            tracing::debug!(%error, %to, "a published datagram was lost");
        }
    }
}

async fn reach(
    clients: &Arc<Mutex<Clients>>,
    socket: &Arc<tokio::net::UdpSocket>,
    client: SocketAddr,
    to: SocketAddr,
) -> io::Result<Arc<tokio::net::UdpSocket>> {
    if let Some(server) = locked(clients).known(client) {
        return Ok(server);
    }
    let any: IpAddr = match to.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let server = Arc::new(tokio::net::UdpSocket::bind((any, 0)).await?);
    server.connect(to).await?;
    let (answers, back, all) = (Arc::clone(&server), Arc::clone(socket), Arc::clone(clients));
    // Locked before: its end can't come before its beginning is known.
    let mut known = locked(clients);
    let carrying = tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM];
        while let Ok(Ok(length)) = tokio::time::timeout(UDP_IDLE, answers.recv(&mut buffer)).await {
            if back.send_to(&buffer[..length], client).await.is_err() {
                break;
            }
        }
        locked(&all).of.remove(&client);
    });
    known.add(client, Arc::clone(&server), carrying.abort_handle());
    Ok(server)
}

fn locked(clients: &Mutex<Clients>) -> MutexGuard<'_, Clients> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn ports_are_written_as_for_docker() {
        let text = |given: &str| given.parse::<Publish>().map(|p| p.to_string());
        for (given, meant) in [
            ("80", "127.0.0.1:0->80/tcp"),
            ("8080:80", "127.0.0.1:8080->80/tcp"),
            ("8080:80/tcp", "127.0.0.1:8080->80/tcp"),
            ("8080:80/TCP", "127.0.0.1:8080->80/tcp"),
            ("53/Udp", "127.0.0.1:0->53/udp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080->80/tcp"),
            ("127.0.0.1:53:5353/udp", "127.0.0.1:53->5353/udp"),
            ("127.0.0.1::80", "127.0.0.1:0->80/tcp"),
            ("[::1]:8080:80", "[::1]:8080->80/tcp"),
        ] {
            assert_eq!(text(given).unwrap(), meant);
        }
        for bad in [
            "",
            "a",
            "80/sctp",
            "0",
            "8000-8001:80",
            "x:1:2",
            "70000:1",
            "1:0",
        ] {
            assert!(text(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_client_that_asked_longest_ago_makes_room() {
        let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = echo.local_addr().unwrap();
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (socket, clients) = (Arc::new(socket), Arc::default());
        let at = |n: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()));
        let mut second = None;
        for n in 1..=UDP_CLIENTS {
            let server = reach(&clients, &socket, at(n), to).await.unwrap();
            if n == 2 {
                second = Some(server);
            }
        }
        for n in [1, UDP_CLIENTS + 1] {
            reach(&clients, &socket, at(n), to).await.unwrap();
        }
        let second = second.unwrap();
        let known = |n| locked(&clients).of.contains_key(&at(n));
        assert_eq!(
            (known(1), known(2), known(UDP_CLIENTS + 1)),
            (true, false, true)
        );
        assert_eq!(locked(&clients).of.len(), UDP_CLIENTS);
        // Nobody but us holds its socket any more.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&second), 1);
    }

    /// In the own namespace, which the thread enters anew: nothing but the carrying is shown here.
    #[test]
    #[ignore = "needs CAP_SYS_ADMIN: scripts/kernel-tests"]
    fn bytes_and_datagrams_are_carried_both_ways() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = [
            (server.local_addr().unwrap().port(), Protocol::Tcp),
            (echo.local_addr().unwrap().port(), Protocol::Udp),
        ];
        let publish = ports.map(|(port, protocol)| Publish {
            host: "127.0.0.1:0".parse().unwrap(),
            port,
            protocol,
        });
        let bound = bind(&publish).unwrap();
        let at: Vec<_> = bound.iter().map(|b| b.publish().unwrap().host).collect();
        serve(
            "/proc/self/ns/net".as_ref(),
            bound,
            "127.0.0.1".parse().unwrap(),
        )
        .unwrap();
        let mut client = std::net::TcpStream::connect(at[0]).unwrap();
        let (mut inside, _) = server.accept().unwrap();
        client.write_all(b"ping").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        inside.read_to_string(&mut text).unwrap();
        inside.write_all(b"pong").unwrap();
        drop(inside);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((text.as_str(), answer.as_str()), ("ping", "pong"));

        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"ask", at[1]).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = echo.recv_from(&mut buffer).unwrap();
        echo.send_to(&buffer[..length], from).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"ask");
    }
}
