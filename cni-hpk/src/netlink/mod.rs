//! Links, addresses, routes and neighbours of one network namespace, over
//! rtnetlink; and its NAT, over nfnetlink.
//!
//! A [`Netlink`] belongs to the namespace it was opened in, for good: one for
//! a pod is opened by a thread that enters the pod's namespace and ends.
//!
//! Layout:
//! - [`link`]: the devices
//! - [`address`]: their addresses
//! - [`route`], [`neighbour`]: where packets go by them
//! - [`nat`]: the nftables table `hpk`
//! - [`error`]

pub mod address;
pub mod error;
pub mod link;
pub mod nat;
pub mod neighbour;
pub mod route;

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

pub use error::Error;
pub use link::{Link, LinkKind, Mac, Vxlan};
pub use neighbour::Neighbour;
pub use route::Route;

/// A route socket of one network namespace. Needs a Tokio runtime.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
}

impl Netlink {
    /// Opens one in the calling thread's namespace.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| Error::new("open", "netlink", source))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Opens one in the namespace at `path`.
    pub fn open_in(path: &Path) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        in_namespace(path, move || {
            let _runtime = runtime.enter();
            Self::open()
        })
        .map_err(|source| Error::new("enter network namespace", path.display(), source))?
    }
}

/// Runs `work` on a thread of its own in the network namespace at `path`.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, io::Error> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
