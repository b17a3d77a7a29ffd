//! A container's process: arguments, environment, user, capabilities.

use std::collections::HashSet;

use hpk_images::container_defaults::CAPABILITIES;
use hpk_images::process_defaults::{self, NoCommand, ProcessDefaults};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, User as OciUser, UserBuilder,
};
use thiserror::Error;

use crate::env::expand::expand;

#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})"
    )]
    RunsAsRoot { pod: String, container: String },
    #[error("unknown capability to {action}: {name:?}")]
    UnknownCapability { action: &'static str, name: String },
    #[error("user or group id {0} is out of range")]
    IdRange(i64),
}

/// Whom a process runs as, in the container's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: String,
}

impl User {
    pub fn to_oci(&self) -> Result<OciUser, OciSpecError> {
        UserBuilder::default()
            .uid(self.uid)
            .gid(self.gid)
            .additional_gids(self.additional_gids.clone())
            .build()
    }
}

/// How the image's files are to be asked for the user: `UID`, `NAME`, `UID:GID`, as
/// `hpk_images::user::resolve` takes it.
pub fn user_to_resolve(pod: &Pod, container: &Container, image_user: &str) -> String {
    match run_as_user(pod, container) {
        Some(uid) => uid.to_string(),
        None => image_user.to_owned(),
    }
}

/// Lays the pod's and the container's security context over the user found in the image.
pub fn user(
    pod: &Pod,
    container: &Container,
    found: hpk_images::user::User,
) -> Result<User, Error> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let group = own
        .and_then(|c| c.run_as_group)
        .or_else(|| context.and_then(|c| c.run_as_group));
    let gid = match group {
        Some(gid) => id(gid)?,
        None => found.gid,
    };
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    let mut groups = if strict {
        Vec::new()
    } else {
        found.additional_gids
    };
    for wanted in context
        .and_then(|c| c.supplemental_groups.as_ref())
        .into_iter()
        .flatten()
    {
        groups.push(id(*wanted)?);
    }
    if let Some(group) = context.and_then(|c| c.fs_group) {
        groups.push(id(group)?);
    }
    // The primary group is listed too, as containerd does: dropping to it keeps it.
    groups.insert(0, gid);
    let mut seen = HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let non_root = own
        .and_then(|c| c.run_as_non_root)
        .or_else(|| context.and_then(|c| c.run_as_non_root));
    if non_root == Some(true) && found.uid == 0 {
        let meta = &pod.metadata;
        return Err(Error::RunsAsRoot {
            pod: format!(
                "{}_{}({})",
                meta.name.as_deref().unwrap_or_default(),
                meta.namespace.as_deref().unwrap_or_default(),
                meta.uid.as_deref().unwrap_or_default()
            ),
            container: container.name.clone(),
        });
    }
    Ok(User {
        uid: found.uid,
        gid,
        additional_gids: groups,
        home: found.home,
    })
}

fn run_as_user(pod: &Pod, container: &Container) -> Option<i64> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    own.and_then(|c| c.run_as_user)
        .or_else(|| context.and_then(|c| c.run_as_user))
}

fn id(value: i64) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| Error::IdRange(value))
}

/// Command and arguments, with `$(VAR)` replaced, merged with the image's.
pub fn defaults(
    container: &Container,
    image: &ImageConfiguration,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<ProcessDefaults, NoCommand> {
    let expanded = |list: &Option<Vec<String>>| -> Option<Vec<String>> {
        list.as_ref()
            .map(|words| words.iter().map(|word| expand(word, lookup)).collect())
    };
    let command = expanded(&container.command);
    let args = expanded(&container.args);
    process_defaults::for_container(image, command.as_deref(), args.as_deref())
}

/// The image's variables, under them HOSTNAME and HOME, over them the pod's.
pub fn environment(
    defaults: &ProcessDefaults,
    env: &[(String, String)],
    nodename: &str,
    user: &User,
) -> Vec<String> {
    let mut all = defaults.env.clone();
    let mut over = vec![format!("HOSTNAME={nodename}")];
    over.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
    process_defaults::merge_env(&mut all, &over);
    if !all.iter().any(|entry| entry.starts_with("HOME=")) {
        all.push(format!("HOME={}", user.home));
    }
    all
}

/// All, in the order of their numbers (capabilities(7), linux/capability.h).
const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The capabilities a container starts with; `bounding` is what can be given at all.
pub fn capabilities(
    context: Option<&SecurityContext>,
    bounding: u64,
) -> Result<LinuxCapabilities, crate::spec::Error> {
    let privileged = context.and_then(|c| c.privileged) == Some(true);
    let mut set: HashSet<Capability> = if privileged {
        ALL_CAPABILITIES.into_iter().collect()
    } else {
        CAPABILITIES.into_iter().map(|(_, given)| given).collect()
    };
    let asked = context.and_then(|c| c.capabilities.as_ref());
    let adds = asked.and_then(|c| c.add.as_deref()).unwrap_or_default();
    let drops = asked.and_then(|c| c.drop.as_deref()).unwrap_or_default();
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    if !privileged {
        if drops.iter().any(is_all) {
            set.clear();
        }
        if adds.iter().any(is_all) {
            set.extend(ALL_CAPABILITIES);
        }
        for name in drops.iter().filter(|name| !is_all(name)) {
            set.remove(&parse_capability("drop", name)?);
        }
        for name in adds.iter().filter(|name| !is_all(name)) {
            set.insert(parse_capability("add", name)?);
        }
    }
    let possible: HashSet<Capability> = ALL_CAPABILITIES
        .into_iter()
        .enumerate()
        .filter(|(number, _)| bounding & (1 << number) != 0)
        .map(|(_, capability)| capability)
        .collect();
    set.retain(|capability| possible.contains(capability));
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?)
}

fn parse_capability(action: &'static str, name: &str) -> Result<Capability, Error> {
    let upper = name.to_uppercase();
    let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
    plain.parse().map_err(|_| Error::UnknownCapability {
        action,
        name: name.to_owned(),
    })
}
