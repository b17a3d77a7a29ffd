//! Which runtime a pod asks for. A node has one, called after its shim, and it is the default.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

use crate::api::{self, Reader};

#[derive(Debug, Error)]
pub enum Error {
    #[error("failed to get sandbox runtime: RuntimeClass {0:?} not found")]
    NoClass(String),
    #[error("failed to get sandbox runtime: no runtime for {0:?} is configured")]
    NoRuntime(String),
    #[error(transparent)]
    Api(#[from] api::Error),
}

/// The handler that stands for a shim's binary: NAME of `containerd-shim-NAME-v2`.
pub fn handler(runtime: &Path) -> &str {
    let file = runtime.file_name().and_then(|name| name.to_str());
    let file = file.unwrap_or_default();
    let name = file.strip_prefix("containerd-shim-").unwrap_or(file);
    name.rsplit_once("-v").map_or(name, |(name, _)| name)
}

/// Refuses a pod whose RuntimeClass has another handler than this node's runtime.
pub async fn check(reader: &Reader, pod: &Pod, runtime: &Path) -> Result<(), Error> {
    let wanted = pod
        .spec
        .as_ref()
        .and_then(|s| s.runtime_class_name.as_deref());
    let Some(name) = wanted.filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let class = reader.runtime_class(name).await?;
    let class = class.ok_or_else(|| Error::NoClass(name.to_owned()))?;
    if class.handler == handler(runtime) {
        Ok(())
    } else {
        Err(Error::NoRuntime(class.handler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_called_as_its_shim_is() {
        let of = |path: &str| handler(Path::new(path)).to_owned();
        assert_eq!(of("/usr/local/bin/containerd-shim-hpk-v2"), "hpk");
        assert_eq!(of("containerd-shim-kata-v2"), "kata");
        assert_eq!(of("/opt/mine"), "mine");
    }
}
