//! The answer to `-info`: what the runtime does, in the form of the OCI runtime spec's features.md, and
//! which cgroup controllers and which Apptainer it has here.

use containerd_shim::protos::{
    protobuf::well_known_types::any::Any,
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

use hpk_cgroup::hierarchies::{self, Version};

use std::process::Command;

use crate::{RUNTIME, apply::programs::Programs, error::Error, plan};

/// The key of the annotation that tells of cgroups.
const CGROUP: &str = "io.hpk.cgroup";
/// The key of the annotation that tells of Apptainer.
const APPTAINER: &str = "io.hpk.apptainer";

/// Gathers it.
pub fn runtime_info() -> Result<RuntimeInfo, Error> {
    let cgroups = cgroups().map_err(Error::system("look for cgroups"))?;
    let features = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    };
    Ok(RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        features: Some(features).into(),
        annotations: [
            (CGROUP.to_owned(), cgroups),
            (APPTAINER.to_owned(), apptainer(&Programs::find())),
        ]
        .into(),
        ..Default::default()
    })
}

/// What Apptainer says of its version, or why it can't be asked. containerd asks once, when it starts.
fn apptainer(programs: &Programs) -> String {
    let program = match programs.apptainer() {
        Ok(program) => program,
        Err(error) => return error.to_string(),
    };
    match Command::new(program).arg("--version").output() {
        Ok(said) if said.status.success() => {
            String::from_utf8_lossy(&said.stdout).trim().to_owned()
        }
        Ok(said) => format!("{}: {}", program.display(), said.status),
        Err(error) => format!("{}: {error}", program.display()),
    }
}

/// `v1: cpu,memory` or `v2: …`, those in which the shim's own user may make a cgroup; or `none`.
fn cgroups() -> std::io::Result<String> {
    let hierarchies = hierarchies::probe()?;
    let names = hierarchies::usable(&hierarchies).join(",");
    let version = hierarchies.first().map(|h| h.version);
    Ok(match version.filter(|_| !names.is_empty()) {
        None => "none".to_owned(),
        Some(Version::V1) => format!("v1: {names}"),
        Some(Version::V2) => format!("v2: {names}"),
    })
}

fn features() -> serde_json::Value {
    let capabilities: Vec<String> = (0..).map_while(plan::capability_name).collect();
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": plan::hooks::RUN,
        "mountOptions": plan::MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": plan::seccomp::features(),
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_name_what_containerd_asks_for() {
        let features = features();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()), "{options:?}");
        assert_eq!(
            features["linux"]["mountExtensions"]["idmap"]["enabled"],
            false
        );
        let info = runtime_info().unwrap();
        assert!(!info.annotations[CGROUP].is_empty());
        // Either its version or what is wrong with it.
        assert!(info.annotations[APPTAINER].contains("apptainer"));
    }
}
