//! The cgroup around those of a pod's containers, on nodes where cgroups can be made.

use std::path::{Path, PathBuf};

use hpk_cgroup::{Hierarchy, Request, Version, group, hierarchies};
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
    #[error("attempting to set {of} memory limit ({limit}) below current usage ({used})")]
    InUse { of: String, limit: u64, used: u64 },
}

/// Where a pod's is asked for, relative to each hierarchy or to what the site has handed over.
fn path(uid: &str) -> PathBuf {
    PathBuf::from(format!("{}/pod{uid}", group::PODS))
}

/// Where that of one of its containers is asked for.
pub fn of_container(uid: &str, id: &str) -> PathBuf {
    path(uid).join(id)
}

/// Whether a kill for lack of memory can take a container as a whole, as the stock kubelet has it on
/// cgroup v2 (`singleProcessOOMKill`); on v1 it takes a process.
pub fn kills_all_of_a_container(all: &[Hierarchy]) -> bool {
    let is_v2 = all.iter().any(|one| one.version == Version::V2);
    is_v2 && hierarchies::usable(all).iter().any(|one| one == "memory")
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

/// Whether the memory that the pod has in use fits into a lower limit: on cgroup v2 the kernel would
/// kill for the rest of it.
///
/// # Errors
/// [`Error::InUse`] if it doesn't.
pub fn fits(hierarchies: &[Hierarchy], uid: &str, limits: Limits) -> Result<(), Error> {
    lowered(hierarchies, &path(uid), limits, || "pod".to_owned())
}

/// The same of container `name`, whose run is `id`.
///
/// # Errors
/// [`Error::InUse`] if it doesn't.
pub fn container_fits(
    hierarchies: &[Hierarchy],
    uid: &str,
    (name, id): (&str, &str),
    limits: Limits,
) -> Result<(), Error> {
    let path = of_container(uid, id);
    lowered(hierarchies, &path, limits, || format!("container {name:?}"))
}

fn lowered(
    hierarchies: &[Hierarchy],
    path: &Path,
    limits: Limits,
    of: impl Fn() -> String,
) -> Result<(), Error> {
    let Some(limit) = limits.memory() else {
        return Ok(());
    };
    match group::memory(hierarchies, path)? {
        Some(memory) if memory.limit > limit && memory.used >= limit => Err(Error::InUse {
            of: of(),
            limit,
            used: memory.used,
        }),
        _ => Ok(()),
    }
}

/// Removes it; nothing for a pod that has none.
///
/// # Errors
/// If a container is left in it.
pub fn remove(hierarchies: &[Hierarchy], uid: &str) -> Result<(), Error> {
    Ok(group::remove(hierarchies, &path(uid))?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_below_what_is_used_is_refused_and_one_that_stays_is_not() {
        let mount = tempfile::tempdir().expect("tempdir");
        let hierarchy = Hierarchy {
            version: Version::V2,
            controllers: vec!["memory".into()],
            mount: mount.path().to_owned(),
            own: "own".into(),
        };
        let folder = mount.path().join("own").join(path("u"));
        std::fs::create_dir_all(&folder).expect("folder");
        let set = |used: &str, limit: &str| {
            std::fs::write(folder.join("memory.current"), used).expect("write");
            std::fs::write(folder.join("memory.max"), limit).expect("write");
        };
        let container = json!({"name": "c", "resources": {"limits": {"memory": "1Ki"}}});
        let spec = serde_json::from_value(json!({"containers": [container]})).expect("spec");
        let fits = || fits(std::slice::from_ref(&hierarchy), "u", Limits::of_pod(&spec));
        set("1023", "2048");
        assert!(fits().is_ok());
        set("1024", "1024");
        assert!(fits().is_ok());
        set("1024", "2048");
        assert_eq!(
            fits().expect_err("too much").to_string(),
            "attempting to set pod memory limit (1024) below current usage (1024)"
        );
    }
}
