//! The cgroup around those of a pod's containers, on nodes where cgroups can be made.

use std::path::PathBuf;

use hpk_cgroup::{Hierarchy, Request, group};
use oci_spec::OciSpecError;
use thiserror::Error;
use tracing::debug;

use crate::spec::limits::Limits;

#[derive(Debug, Error)]
pub enum Error {
    #[error("can't describe the pod's limits")]
    Oci(#[from] OciSpecError),
    #[error("can't limit the pod")]
    Cgroup(#[from] hpk_cgroup::Error),
}

/// Where a pod's is asked for, relative to each hierarchy or to what the site has handed over.
fn path(uid: &str) -> PathBuf {
    PathBuf::from(format!("{}/pod{uid}", group::PODS))
}

/// Where that of one of its containers is asked for.
pub fn of_container(uid: &str, id: &str) -> PathBuf {
    path(uid).join(id)
}

/// Makes it if need be, and sets its limits.
///
/// # Errors
/// A value that the kernel refuses. That no cgroup can be made is no error: the node says so.
pub fn ensure(hierarchies: &[Hierarchy], uid: &str, limits: Limits) -> Result<(), Error> {
    let request = Request {
        path: path(uid),
        resources: limits.for_update()?,
    };
    for not_done in group::ensure(hierarchies, &request)? {
        debug!(uid, "{not_done}");
    }
    Ok(())
}

/// Removes it; nothing for a pod that has none.
///
/// # Errors
/// If a container is left in it.
pub fn remove(hierarchies: &[Hierarchy], uid: &str) -> Result<(), Error> {
    Ok(group::remove(hierarchies, &path(uid))?)
}
