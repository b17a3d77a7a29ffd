//! The image store: from a reference to a read-only root file system.
//!
//! An image is downloaded once per cluster (the store lies on the shared file system), kept as one squashfs per
//! image digest made by merging its layers as a stream, and mounted once per node by a process that outlives its
//! starter. Layers are never unpacked on the shared file system.
//!
//! Expected flow, for a container:
//!
//! ```no_run
//! # async fn flow() -> Result<(), Box<dyn std::error::Error>> {
//! use hpk_images::{Mounter, PullPolicy, Quiet, Reference, Store, StoreConfig, overlay, process_defaults, user};
//!
//! let store = Store::open(StoreConfig::from_env()?).await?;
//! let reference: Reference = "busybox".parse()?;
//! let image = store.resolve_and_ensure(&reference, PullPolicy::IfNotPresent, None, &Quiet).await?;
//! let lower = Mounter::new("/run/hpk/images").ensure(&image).await?;
//! let process = process_defaults::for_container(&image.config, None, None)?;
//! let user = user::resolve(&lower, &process.user)?;
//! let mounts = overlay::rootfs_mounts(&lower, "/var/lib/hpk/x/upper".as_ref(), "/var/lib/hpk/x/work".as_ref());
//! # let _ = (user, mounts);
//! # Ok(())
//! # }
//! ```
//!
//! Guarantees: what is in the store was verified (manifest and every blob by digest, every layer by its diff id);
//! what is half-made is never seen under a final name; two nodes that pull at once download once, and a holder's
//! death delays the other by [`lease::EXPIRY`] at most, its hanging by [`lease::STALL`] more. An image beyond its
//! [`limits`] is refused before it fills memory or disk. Files are 0600 and folders 0700.
//!
//! Assumptions: the store's file system has atomic `rename` and `link`; flock isn't needed there. `mksquashfs` (squashfs-tools
//! ≥ 4.5) and, for mounts, `squashfuse_ll` or `squashfuse` are on PATH.
//!
//! Layout:
//! - [`reference`]: names of images, normalised as Docker does
//! - [`registries`]: `registries.yaml` (K3s's form) → the endpoints to try
//! - [`credentials`]: user names and passwords, `dockerconfigjson`; [`logins`]: the user's own, as docker and podman keep them
//! - [`policy`]: `policy.json` (the containers' form): which images may be taken, and their signatures
//! - [`progress`]: what a pull reports while it runs
//! - [`manifest`]: manifests and indexes, the choice of platform
//! - [`source`]: where blobs come from: [`source::registry`], [`source::local`] (tars, OCI layouts), [`source::place`] (which image of one)
//! - [`layer`]: one layer: decompression, and its list of entries (`members`: tar from a stream)
//! - [`merge`]: lists of entries → the merged tree (pure)
//! - [`pack`]: the merged tree → one tar stream → `mksquashfs`
//! - [`limits`]: what an image may ask of the node
//! - [`lease`]: the lock that survives a dead holder, and one that hangs
//! - [`store`]: all of that, by digest
//! - [`private`]: a node-local folder whose name nobody else can take
//! - [`mount`]: squashfs → a folder, by squashfuse; [`sif`]: where it lies in a SIF
//! - [`overlay`]: the mounts of a container's root file system
//! - [`process_defaults`], [`user`]: what an image's config says of the process to run
//! - [`container_defaults`]: what a container is given where nobody says otherwise

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod container_defaults;
pub mod credentials;
pub mod layer;
pub mod lease;
pub mod limits;
pub mod logins;
pub mod manifest;
mod members;
pub mod merge;
pub mod mount;
pub mod overlay;
pub mod pack;
pub mod policy;
pub mod private;
pub mod process_defaults;
pub mod progress;
pub mod reference;
pub mod registries;
pub mod sif;
pub mod source;
pub mod store;
pub mod user;

pub use credentials::{Credentials, Keyring};
pub use limits::Limits;
pub use mount::Mounter;
pub use oci_spec::image::ImageConfiguration;
pub use overlay::Mount;
pub use progress::{Event, Progress, Quiet};
pub use reference::Reference;
pub use store::{
    Claims, Error, ErrorKind, Image, Kept, Newest, PullPolicy, Store, StoreConfig, Stored,
};
