//! A connection made from within a network namespace.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// How long a connection on loopback may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs `work` on a thread of its own in the namespace; the thread ends there. Blocks.
fn within<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let file = File::open(netns)?;
    thread::scope(|scope| {
        let entered = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// Connects to a port on loopback, IPv4 first; in the namespace, or in ours if there is none.
///
/// # Errors
/// The namespace can't be entered, or nobody listens.
pub fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let dial = move || {
        let address = |ip: IpAddr| SocketAddr::new(ip, port);
        TcpStream::connect_timeout(&address(Ipv4Addr::LOCALHOST.into()), LIMIT).or_else(|error| {
            // The first error is the one that says something.
            TcpStream::connect_timeout(&address(Ipv6Addr::LOCALHOST.into()), LIMIT)
                .map_err(|_| error)
        })
    };
    match netns {
        Some(netns) => within(netns, dial),
        None => dial(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn without_a_namespace_it_is_our_own_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(connect(None, port).is_ok());
        drop(listener);
        assert!(connect(None, port).is_err());
    }

    #[test]
    fn a_namespace_that_is_not_there_is_an_error() {
        assert!(connect(Some(Path::new("/nonexistent/netns")), 1).is_err());
    }
}
