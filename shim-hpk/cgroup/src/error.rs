//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value that no cgroup could take; the field's name as in the OCI runtime spec.
    #[error("{field} is invalid: {why}")]
    Invalid { field: String, why: String },
    #[error("{action} {}: {source}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "no cgroup {} can be entered: does it exist on this host, has the administrator given it to this user, and, on cgroup v2, is this process below it?",
        name.display()
    )]
    NotHandedOver { name: PathBuf },
    #[error("no cgroup freezer may be used here")]
    NoFreezer,
    #[error("the cgroup freezer did not answer within {seconds} s")]
    NotFrozen { seconds: u64 },
}
