//! What the spec may ask for and this runtime does not do. Refused by name, never silently.

use oci_spec::runtime::{Linux, Process, Spec};

use crate::error::Error;

fn refuse(field: &str, why: &'static str) -> Result<(), Error> {
    Err(Error::Unsupported {
        field: field.to_owned(),
        why,
    })
}

/// Refuses what a container's spec may not have.
pub fn spec(spec: &Spec) -> Result<(), Error> {
    for (field, present) in [
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if present {
            refuse(field, "this is a Linux container runtime")?;
        }
    }
    if let Some(l) = spec.linux() {
        linux(l)?;
    }
    spec.process().as_ref().map_or(Ok(()), process)
}

fn linux(linux: &Linux) -> Result<(), Error> {
    let userns = "containers share the bubble's user namespace";
    if linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()) {
        refuse("linux.uidMappings", userns)?;
    }
    if linux.gid_mappings().as_ref().is_some_and(|m| !m.is_empty()) {
        refuse("linux.gidMappings", userns)?;
    }
    if linux.mount_label().as_ref().is_some_and(|l| !l.is_empty()) {
        refuse("linux.mountLabel", "SELinux labels are not applied")?;
    }
    for (field, present) in [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        (
            "linux.timeOffsets",
            linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty()),
        ),
        (
            "linux.netDevices",
            linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()),
        ),
    ] {
        if present {
            refuse(field, "it is not applied")?;
        }
    }
    let resources = linux.resources().as_ref();
    let rdma = resources.and_then(|resources| resources.rdma().as_ref());
    if rdma.is_some_and(|limits| !limits.is_empty()) {
        refuse(
            "linux.resources.rdma",
            "it is not applied; `unified` may set it",
        )?;
    }
    Ok(())
}

/// Refuses what a process may not have.
pub fn process(process: &Process) -> Result<(), Error> {
    let set = |s: &Option<String>| s.as_ref().is_some_and(|s| !s.is_empty());
    for (field, present) in [
        (
            "process.apparmorProfile",
            set(process.apparmor_profile())
                && process.apparmor_profile().as_deref() != Some("unconfined"),
        ),
        ("process.selinuxLabel", set(process.selinux_label())),
        ("process.commandLine", set(process.command_line())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
    ] {
        if present {
            refuse(field, "it is not applied")?;
        }
    }
    Ok(())
}
