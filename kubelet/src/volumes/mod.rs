//! A pod's volumes: which kinds there are, what files they hold, and putting them in place.
//!
//! - `plan`: the pod's volumes as a closed set of kinds, or the name of the one we don't know
//! - `payload`: files of configMap, secret, downwardAPI and projected volumes, as values
//! - `atomic`: writing a payload so that a reader sees the old or the new, never a mixture
//! - `host_path`, `empty_dir`: the two kinds that are folders
//! - `claim`: what a PersistentVolumeClaim is bound to, and where that is
//! - `ownership`: fsGroup
//! - `apply`: all of them for one pod, and their refresh
//! - `source`: where a container's mount of a volume comes from (subPath)

pub mod apply;
pub mod atomic;
pub mod claim;
pub mod empty_dir;
pub mod host_path;
pub mod ownership;
pub mod payload;
pub mod plan;
pub mod source;

pub use apply::{MountError, Mounted, mount_all, refresh};
