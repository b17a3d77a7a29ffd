//! Which users and groups there are in a user namespace: outside, what a user may map into a new
//! one, as Apptainer's `--fakeroot` maps it; inside, what is mapped.
//!
//! - [`outside`] – the ranges of /etc/subuid and /etc/subgid, or the user's own id alone; mapping them.
//! - [`inside`] – /proc/self/uid_map and gid_map.

pub mod inside;
pub mod outside;

pub use inside::Mapped;
pub use outside::{Ids, Ranges};
