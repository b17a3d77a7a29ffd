//! A pod through any runtime v2 shim, as the kubelet drives it: sandbox, app container in its
//! namespaces, exec, terminal, logger, adoption, events, a killed shim.
//!
//! Needs root in a user namespace or for real, and by environment: HPK_TEST_SHIM (a shim's binary),
//! HPK_TEST_ROOTFS (a directory with a busybox in it, copied), HPK_TEST_PAUSE (hpk-pause),
//! HPK_TEST_DIR (scratch space not on an overlay). With a shim named …runc… what only ours promises
//! (a logger started again, metrics without cgroups) is not asked for. shim-hpk/tests/pod.sh runs them on a testbed host.
//!
//! Layout:
//! - `life` – a whole pod's life, many pods, many containers at once.
//! - `streams` – stdin, terminal, logger.
//! - `spec` – a container is what its spec says, or refused by name.
//! - `death` – a shim that is killed, at rest and at work.
//! - `engine` – what the shim runs is killed, or kept.
//! - `processes` – this machine's. `scene` – what all of them start from. `lone` – a container without a pod.
#![allow(clippy::unwrap_used)]

mod death;
mod engine;
mod life;
mod lone;
mod processes;
mod scene;
mod spec;
mod streams;
