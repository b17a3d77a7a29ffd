//! The cluster's ports on its controller's host. `launch` chooses free ones and listens on them
//! from then on; the controller's part of the host takes the listening sockets over, and gives
//! them to `forward`. So there is no moment at which another could take a port.
//!
//! Expected flow: [`hold`] and [`Handover::open`] before the cluster is written down, with both in
//! it; [`Handover::give`] while the hosts' parts start; [`take`] on the controller.
//!
//! Guarantees: sockets pass only between two processes of this user, as the kernel names them to
//! each other, through a folder that only this user may enter. Neither side waits without end.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::local::{OpenFolder, Passing};
use crate::settings::{API_PORT, ETCD_PORT, OVERLAY_PORT};

/// How long the controller waits for the sockets.
const LIMIT: Duration = Duration::from_secs(10);
/// The socket's name in its folder.
const SOCKET: &str = "ports.sock";

/// TCP ports of the controller's host that lead to its bubble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub apiserver: u16,
    pub etcd: u16,
}

/// Sockets that listen on the ports.
#[derive(Debug)]
pub struct Held {
    pub apiserver: TcpListener,
    pub etcd: TcpListener,
}

impl Held {
    pub fn ports(&self) -> Result<Ports> {
        let port = |listener: &TcpListener| {
            let address = listener.local_addr();
            Ok::<u16, anyhow::Error>(address.context("asking for a port's number")?.port())
        };
        Ok(Ports {
            apiserver: port(&self.apiserver)?,
            etcd: port(&self.etcd)?,
        })
    }

    /// These ports, where nobody holds them for us.
    fn bind(ports: Ports) -> Result<Self> {
        let bind = |port| {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                .with_context(|| format!("listening on port {port} of this host"))
        };
        Ok(Self {
            apiserver: bind(ports.apiserver)?,
            etcd: bind(ports.etcd)?,
        })
    }
}

/// Listens on the preferred ports, or free ones.
pub fn hold() -> Result<Held> {
    let bind = |preferred| {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, preferred))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
            .context("no TCP port is free on this host")
    };
    Ok(Held {
        apiserver: bind(API_PORT)?,
        etcd: bind(ETCD_PORT)?,
    })
}

/// A UDP port for the overlay on this host: the preferred one or a free one.
pub fn free_overlay_port() -> Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, OVERLAY_PORT))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .context("no UDP port is free on this host")?;
    let address = socket.local_addr().context("asking for a port's number")?;
    Ok(address.port())
}

/// Where the controller asks for the sockets; goes with this value.
#[derive(Debug)]
pub struct Handover {
    folder: Passing,
    listener: UnixListener,
}

impl Handover {
    /// In a folder of its own below `parent`.
    pub fn open(id: &str, parent: &Path) -> Result<Self> {
        let folder = Passing::make(id, parent)?;
        let open = OpenFolder::of(folder.path())?;
        let listener = UnixListener::bind(open.join(SOCKET))
            .with_context(|| format!("listening in {}", folder.path().display()))?;
        Ok(Self { folder, listener })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits for the controller to ask, and gives the sockets away.
    pub async fn give(self, held: Held) -> Result<()> {
        let stream = loop {
            let (stream, _) = self
                .listener
                .accept()
                .await
                .context("listening for the controller")?;
            if is_this_users(&stream)? {
                break stream;
            }
        };
        let sockets = [held.apiserver.as_fd(), held.etcd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(
            control.push(SendAncillaryMessage::ScmRights(&sockets)),
            "no room for two sockets in a message"
        );
        stream
            .async_io(Interest::WRITABLE, || {
                // A message carries at least a byte.
                let byte = [IoSlice::new(b"x")];
                Ok(sendmsg(&stream, &byte, &mut control, SendFlags::NOSIGNAL)?)
            })
            .await
            .context("handing the ports' sockets to the controller")?;
        Ok(())
    }
}

fn is_this_users(peer: &UnixStream) -> Result<bool> {
    let peer = peer.peer_cred().context("asking who the other side is")?;
    Ok(peer.uid() == nix::unistd::getuid().as_raw())
}

/// The sockets of these ports, from whoever holds them in `handover`, or made here.
pub async fn take(ports: Ports, handover: Option<&Path>) -> Result<Held> {
    let Some(folder) = handover else {
        return Held::bind(ports);
    };
    let held = tokio::time::timeout(LIMIT, receive(folder)).await;
    let held = held
        .with_context(|| format!("nothing came in {} s", LIMIT.as_secs()))
        .flatten()
        .with_context(|| format!("taking the ports' sockets in {}", folder.display()))?;
    let have = held.ports()?;
    ensure!(
        have == ports,
        "the sockets' ports are {have:?}, not {ports:?}"
    );
    Ok(held)
}

async fn receive(folder: &Path) -> Result<Held> {
    let open = OpenFolder::of(folder)?;
    let stream = UnixStream::connect(open.join(SOCKET))
        .await
        .context("asking for them")?;
    ensure!(is_this_users(&stream)?, "another user listens there");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    stream
        .async_io(Interest::READABLE, || {
            let mut byte = [0];
            let into = &mut [IoSliceMut::new(&mut byte)];
            Ok(recvmsg(
                &stream,
                into,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?)
        })
        .await
        .context("awaiting them")?;
    let mut sockets = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<OwnedFd>>(),
        _ => Vec::new(),
    });
    match (sockets.next(), sockets.next()) {
        (Some(apiserver), Some(etcd)) => Ok(Held {
            apiserver: apiserver.into(),
            etcd: etcd.into(),
        }),
        _ => bail!("the answer has no two sockets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_taken(port: u16) -> bool {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err()
    }

    #[test]
    fn two_clusters_never_hold_the_same_port() {
        let (one, other) = (hold().unwrap(), hold().unwrap());
        let (one, other) = (one.ports().unwrap(), other.ports().unwrap());
        assert_ne!(one.apiserver, other.apiserver);
        assert_ne!(one.etcd, other.etcd);
    }

    #[tokio::test]
    async fn the_ports_stay_taken_while_they_change_hands() {
        let parent = tempfile::tempdir().unwrap();
        let held = hold().unwrap();
        let ports = held.ports().unwrap();
        let handover = Handover::open("7", parent.path()).unwrap();
        let folder = handover.folder().to_owned();
        let (given, taken) = tokio::join!(handover.give(held), take(ports, Some(&folder)));
        given.unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.ports().unwrap(), ports);
        assert!(is_taken(ports.apiserver) && is_taken(ports.etcd));
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn without_a_holder_the_ports_are_bound_and_a_taken_one_is_named() {
        // Not the preferred ones, which another test would take when they are let go.
        let free = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let held = Held {
            apiserver: free(),
            etcd: free(),
        };
        let ports = held.ports().unwrap();
        let error = take(ports, None).await.unwrap_err();
        assert!(error.to_string().contains(&ports.apiserver.to_string()));
        drop(held);
        assert_eq!(take(ports, None).await.unwrap().ports().unwrap(), ports);
    }

    #[tokio::test]
    async fn a_handover_that_is_gone_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let gone = parent.path().join("gone");
        let ports = Ports {
            apiserver: 1,
            etcd: 2,
        };
        let error = take(ports, Some(&gone)).await.unwrap_err();
        assert!(format!("{error:#}").contains("gone"), "{error:#}");
    }
}
