//! The cluster's ports on its controller's host: chosen free, and held until the uplink takes them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use crate::settings::{API_PORT, ETCD_PORT, OVERLAY_PORT};

/// TCP ports of the controller's host that lead to its bubble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub apiserver: u16,
    pub etcd: u16,
}

/// Listening sockets that keep the ports from other clusters until [`Held::serve`] lets them go.
#[derive(Debug)]
pub struct Held {
    listeners: Vec<TcpListener>,
    pub ports: Ports,
}

/// Takes the preferred ports, or free ones.
pub fn hold() -> Result<Held> {
    let api = bind(API_PORT)?;
    let etcd = bind(ETCD_PORT)?;
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    let ports = Ports {
        apiserver: port(&api).context("asking for a port's number")?,
        etcd: port(&etcd).context("asking for a port's number")?,
    };
    Ok(Held {
        listeners: vec![api, etcd],
        ports,
    })
}

fn bind(preferred: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, preferred))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .context("no TCP port is free on this host")
}

/// A UDP port for the overlay on this host: the preferred one or a free one.
pub fn free_overlay_port() -> Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, OVERLAY_PORT))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .context("no UDP port is free on this host")?;
    let address = socket.local_addr().context("asking for a port's number")?;
    Ok(address.port())
}

/// An abstract name: it leaves no file, and goes with its holder.
fn rendezvous(id: &str) -> Result<SocketAddr> {
    let name = format!("hpk-ports-{}-{id}", nix::unistd::getuid());
    SocketAddr::from_abstract_name(name).context("naming the socket of the ports' holder")
}

impl Held {
    /// Waits, in a thread of its own, for the controller to ask, and then lets the ports go.
    pub fn serve(self, id: &str) -> Result<()> {
        let listener =
            UnixListener::bind_addr(&rendezvous(id)?).context("listening for the controller")?;
        std::thread::spawn(move || {
            let asked = listener.incoming().flatten().find(|stream| {
                getsockopt(stream, PeerCredentials)
                    .is_ok_and(|peer| peer.uid() == nix::unistd::getuid().as_raw())
            });
            drop(self.listeners);
            drop(listener);
            if let Some(mut stream) = asked {
                // The controller may have gone meanwhile: then nobody wants the answer.
                let _ = stream.write_all(b"x");
            }
        });
        Ok(())
    }
}

/// Asks the holder on this host to let the ports go; fine if there is none.
pub fn release(id: &str) -> Result<()> {
    let Ok(mut stream) = UnixStream::connect_addr(&rendezvous(id)?) else {
        return Ok(());
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .context("setting a time limit")?;
    let mut answer = [0];
    stream
        .read_exact(&mut answer)
        .context("the holder of the ports doesn't answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since ports are the machine's: another would take what this one lets go.
    #[test]
    fn a_held_port_is_taken_until_it_is_released() {
        let (held, other) = (hold().unwrap(), hold().unwrap());
        let ports = held.ports;
        assert_ne!(ports.apiserver, other.ports.apiserver);
        assert_ne!(ports.etcd, other.ports.etcd);
        let taken = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, ports.apiserver)).is_err();
        assert!(taken());
        let id = format!("test-{}", std::process::id());
        held.serve(&id).unwrap();
        assert!(taken());
        release(&id).unwrap();
        assert!(!taken());
        release(&id).unwrap();
    }
}
