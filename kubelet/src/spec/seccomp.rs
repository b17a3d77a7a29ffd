//! Seccomp profiles: which of them a container gets, and the default one, which container engines
//! share as a file with conditions in it. Pure.
//! Source: containers-common, seccomp.json; OCI runtime spec, config-linux.md, "Seccomp".

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    #[error("no default seccomp profile on this node: {0}")]
    NoDefault(String),
    #[error("seccomp profile {name:?}")]
    Profile {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("seccompProfile.type {0:?} is none of RuntimeDefault, Localhost, Unconfined")]
    Type(String),
}

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Unconfined,
    Default,
    /// A file in the node's folder of profiles.
    Local(String),
}

/// The container's profile, else the pod's. A privileged container is never confined.
///
/// # Errors
/// A type that Kubernetes doesn't know.
pub fn wanted(pod: &Pod, container: &Container) -> Result<Wanted, Error> {
    let own = container.security_context.as_ref();
    if own.and_then(|c| c.privileged) == Some(true) {
        return Ok(Wanted::Unconfined);
    }
    let of_pod = || {
        let spec = pod.spec.as_ref()?;
        spec.security_context.as_ref()?.seccomp_profile.as_ref()
    };
    let profile = own.and_then(|c| c.seccomp_profile.as_ref()).or_else(of_pod);
    let Some(SeccompProfile {
        type_,
        localhost_profile,
    }) = profile
    else {
        return Ok(Wanted::Unconfined);
    };
    match type_.as_str() {
        "Unconfined" => Ok(Wanted::Unconfined),
        "RuntimeDefault" => Ok(Wanted::Default),
        "Localhost" => Ok(Wanted::Local(localhost_profile.clone().unwrap_or_default())),
        other => Err(Error::Type(other.to_owned())),
    }
}

/// The default profile, with its conditions. Also an OCI profile, which has none.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: Value,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<Architecture>,
    #[serde(default)]
    flags: Vec<Value>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: Value,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Vec<String>,
    /// As Go names them.
    arches: Vec<String>,
    /// `4.8`.
    min_kernel: Option<String>,
}

/// The machine, as conditions ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// As Go names it.
    pub architecture: &'static str,
    /// `6.18.44-…`
    pub kernel: String,
}

/// What changes a file's owner or a process's users and groups.
const OF_IDS: [&str; 21] = [
    "chown",
    "chown32",
    "fchown",
    "fchown32",
    "fchownat",
    "lchown",
    "lchown32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setuid",
    "setuid32",
];

impl Profile {
    /// One that forbids nothing, to programs of any architecture that the machine runs.
    pub fn open() -> Self {
        let runs = |architecture: &str, older: &[&str]| Architecture {
            architecture: architecture.to_owned(),
            sub_architectures: older.iter().map(|name| (*name).to_owned()).collect(),
        };
        Self {
            default_action: json!("SCMP_ACT_ALLOW"),
            default_errno_ret: None,
            architectures: Vec::new(),
            arch_map: vec![
                runs("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
                runs("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
            ],
            flags: Vec::new(),
            syscalls: Vec::new(),
        }
    }

    /// The same, but for system calls that change ids: they do nothing, and say that they did.
    pub fn pretending(mut self) -> Self {
        for rule in &mut self.syscalls {
            rule.names.retain(|name| !OF_IDS.contains(&name.as_str()));
        }
        self.syscalls.retain(|rule| !rule.names.is_empty());
        self.syscalls.push(Rule {
            names: OF_IDS.map(str::to_owned).into(),
            action: json!("SCMP_ACT_ERRNO"),
            errno_ret: Some(0),
            args: None,
            includes: Condition::default(),
            excludes: Condition::default(),
        });
        self
    }

    /// The profile for a container with these capabilities.
    ///
    /// # Errors
    /// What the OCI form has no place for.
    pub fn resolve(
        &self,
        machine: &Machine,
        capabilities: &HashSet<Capability>,
    ) -> Result<LinuxSeccomp, serde_json::Error> {
        let native = match machine.architecture {
            "arm64" => "SCMP_ARCH_AARCH64",
            _ => "SCMP_ARCH_X86_64",
        };
        let mapped = self.arch_map.iter().find(|a| a.architecture == native);
        let architectures = match mapped {
            Some(found) => [vec![native.to_owned()], found.sub_architectures.clone()].concat(),
            None => self.architectures.clone(),
        };
        let has = |name: &String| {
            let capability: Result<Capability, _> = serde_json::from_value(json!(name));
            capability.is_ok_and(|capability| capabilities.contains(&capability))
        };
        let applies = |rule: &&Rule| {
            let (only, not) = (&rule.includes, &rule.excludes);
            let is_here = |arches: &[String]| arches.iter().any(|a| a == machine.architecture);
            (only.arches.is_empty() || is_here(&only.arches))
                && only.caps.iter().all(has)
                && only
                    .min_kernel
                    .as_ref()
                    .is_none_or(|least| is_at_least(&machine.kernel, least))
                && !is_here(&not.arches)
                && !not.caps.iter().any(has)
        };
        let syscalls: Vec<Value> = self
            .syscalls
            .iter()
            .filter(applies)
            .map(Rule::to_oci)
            .collect();
        let mut profile = json!({
            "defaultAction": self.default_action,
            "architectures": architectures,
            "syscalls": syscalls,
        });
        if let Some(errno) = self.default_errno_ret {
            profile["defaultErrnoRet"] = errno.into();
        }
        if !self.flags.is_empty() {
            profile["flags"] = self.flags.clone().into();
        }
        serde_json::from_value(profile)
    }
}

impl Rule {
    fn to_oci(&self) -> Value {
        let mut rule = json!({"names": self.names, "action": self.action});
        if let Some(errno) = self.errno_ret {
            rule["errnoRet"] = errno.into();
        }
        if let Some(args) = self.args.as_ref().filter(|args| !args.is_empty()) {
            rule["args"] = args.clone().into();
        }
        rule
    }
}

/// Compares major and minor numbers.
fn is_at_least(kernel: &str, least: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let parts = text.split(|c: char| !c.is_ascii_digit());
        parts.take(2).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(kernel) >= numbers(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["umount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                 "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}
            ]}))
        .expect("profile")
    }

    fn allowed(machine: &Machine, capabilities: &[Capability]) -> Vec<String> {
        let capabilities = capabilities.iter().copied().collect();
        let seccomp = profile().resolve(machine, &capabilities).expect("resolved");
        let rules = seccomp.syscalls().clone().unwrap_or_default();
        rules.iter().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn rules_hold_for_the_capabilities_architecture_and_kernel_they_name() {
        let new = Machine {
            architecture: "amd64",
            kernel: "6.18.44-x".to_owned(),
        };
        assert_eq!(
            allowed(&new, &[]),
            ["read", "umount", "arch_prctl", "ptrace"]
        );
        let admin = allowed(&new, &[Capability::SysAdmin]);
        assert_eq!(admin, ["read", "mount", "arch_prctl", "ptrace"]);
        let old = Machine {
            architecture: "arm64",
            kernel: "4.4.0".to_owned(),
        };
        assert_eq!(allowed(&old, &[]), ["read", "umount"]);
    }

    #[test]
    fn a_pretended_system_call_is_in_one_rule_only_and_says_that_it_did() {
        let machine = Machine {
            architecture: "amd64",
            kernel: "6.18.44-x".to_owned(),
        };
        let mut strict = profile();
        strict.syscalls[0].names.push("chown".to_owned());
        for profile in [strict, Profile::open()] {
            let seccomp = profile.pretending().resolve(&machine, &HashSet::new());
            let seccomp = seccomp.expect("resolved");
            let rules = seccomp.syscalls().clone().expect("rules");
            let chown = rules
                .iter()
                .filter(|rule| rule.names().contains(&"chown".to_owned()));
            let errors: Vec<_> = chown
                .map(oci_spec::runtime::LinuxSyscall::errno_ret)
                .collect();
            assert_eq!(errors, [Some(0)]);
            assert_eq!(
                seccomp.architectures().clone().expect("known").len(),
                2 + usize::from(rules.len() == 1)
            );
        }
    }

    #[test]
    fn a_container_has_its_own_profile_before_the_pods_and_none_when_privileged() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}}))
        .expect("pod");
        let of = |context: Value| {
            let container = json!({"name": "c", "securityContext": context});
            wanted(&pod, &serde_json::from_value(container).expect("container")).expect("known")
        };
        assert_eq!(of(json!({})), Wanted::Default);
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}});
        assert_eq!(of(local), Wanted::Local("a.json".to_owned()));
        assert_eq!(of(json!({"privileged": true})), Wanted::Unconfined);
    }
}
