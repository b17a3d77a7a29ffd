//! A TCP port of the host that leads into the bubble: this program anew, with the listening socket
//! as its standard input. The socket stays in the host's network namespace, and the process enters
//! the bubble's, where it makes the connections' other ends.
//!
//! The uplink could do this too, but would have to take a port that was free a moment before.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::AsFd as _;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::{block_on, files, own_path};

/// Bytes of a connection that are on their way in each direction, and connections at a time:
/// together they bound what strangers, who may connect but get no further, can make this take.
const BUFFER: usize = 16 << 10;
const MOST: u64 = 4096;
/// File descriptors kept for what is no connection.
const SPARE: u64 = 32;

/// The host's side of a forward.
#[derive(Debug)]
pub struct Forward {
    pub listener: StdListener,
    /// The bubble's init.
    pub pid: i32,
    /// The port in the bubble.
    pub port: u16,
}

impl Forward {
    /// Starts it, also anew: connections that come meanwhile wait in the socket.
    pub fn start(&self, log: File) -> Result<Child> {
        let listener = self.listener.as_fd().try_clone_to_owned();
        let listener = listener.context("duplicating a port's socket")?;
        Command::new(own_path()?)
            .args(["forward", &self.pid.to_string(), &self.port.to_string()])
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting the forward of port {}", self.port))
    }
}

/// The process: `hpk-bubble forward PID PORT`.
pub fn run(pid: i32, port: u16) -> Result<ExitCode> {
    let parent = nix::unistd::getppid();
    let listener = std::io::stdin().as_fd().try_clone_to_owned();
    let listener = StdListener::from(listener.context("taking the listening socket")?);
    listener
        .set_nonblocking(true)
        .context("standard input is no listening socket")?;
    let limit = files::raise_open_limit()?;
    enter(pid).with_context(|| format!("entering the namespaces of process {pid}"))?;
    // Only now, since a change of user namespace undoes it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("following the parent's end")?;
    ensure!(nix::unistd::getppid() == parent, "the parent has gone");
    block_on(serve(listener, port, limit))
}

/// Enters its user and network namespace; takes a process of one thread.
fn enter(pid: i32) -> Result<()> {
    let open = |kind: &str| {
        let path = format!("/proc/{pid}/ns/{kind}");
        File::open(&path).with_context(|| format!("opening {path}"))
    };
    let (user, network) = (open("user")?, open("net")?);
    setns(user, CloneFlags::CLONE_NEWUSER).context("its user namespace")?;
    setns(network, CloneFlags::CLONE_NEWNET).context("its network namespace")
}

async fn serve(listener: StdListener, port: u16, open_limit: u64) -> Result<ExitCode> {
    let listener = TcpListener::from_std(listener).context("watching the socket")?;
    // Those that find no room wait in the socket: accepting them would fail at once, and for ever.
    let room = (open_limit.saturating_sub(SPARE) / 2).clamp(1, MOST);
    let room = Arc::new(Semaphore::new(usize::try_from(room).unwrap_or(1)));
    loop {
        let place = Arc::clone(&room).acquire_owned().await;
        let place = place.context("counting connections")?;
        let (outer, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The other side went before it was its turn.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("accepting a connection"),
        };
        tokio::spawn(async move {
            // Whoever connected sees the end of the connection; more there is not to say.
            let _ = join(outer, port).await;
            drop(place);
        });
    }
}

async fn join(mut outer: TcpStream, port: u16) -> std::io::Result<()> {
    let mut inner = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    outer.set_nodelay(true)?;
    inner.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut outer, &mut inner, BUFFER, BUFFER).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_connection_is_joined_both_ways_and_ends_with_either_side() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let outside = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        outside.set_nonblocking(true).unwrap();
        let address = outside.local_addr().unwrap();
        tokio::spawn(serve(outside, port, 1024));
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        served.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        served.write_all(b"answer").await.unwrap();
        drop(served);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_connection_that_finds_no_room_waits_for_its_turn() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let outside = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        outside.set_nonblocking(true).unwrap();
        let address = outside.local_addr().unwrap();
        // Room for one connection.
        tokio::spawn(serve(outside, port, SPARE + 2));
        let first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let (served, _) = server.accept().await.unwrap();
        drop((first, served));
        let (mut served, _) = server.accept().await.unwrap();
        served.write_all(b"2").await.unwrap();
        assert_eq!(second.read_u8().await.unwrap(), b'2');
    }
}
