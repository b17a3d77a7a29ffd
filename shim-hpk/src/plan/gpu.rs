//! GPUs: the driver's files and device nodes that Apptainer's `--nv` and `--rocm` would give.
//!
//! Not by those options: into a writable directory, which every root here is, Apptainer (1.4.5) binds only
//! what has a mount point there already. What the driver consists of is still Apptainer's to say, by its lists
//! `nvliblist.conf` and `rocmliblist.conf`, and the files get the places that it gives them.

mod cache;
mod list;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, MountBuilder, Spec,
};

pub use cache::{Library, parse_cache};
pub use list::{Listed, parse_list};

use crate::{config, error::Error};

/// Annotation of a container: `nv`, `rocm`, both with a comma between, or `none`. Without it the device
/// nodes that a container asks for tell.
pub const ANNOTATION: &str = "io.hpk.gpu";

/// Where the libraries are put; in a container of Apptainer's, which a bubble is, where they are.
pub const LIBRARIES: &str = "/.singularity.d/libs";
const PROGRAMS: &str = "/usr/bin";
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";
const OPTIONS: [&str; 4] = ["bind", "ro", "nosuid", "nodev"];

/// Whose GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Nvidia,
    Amd,
}

impl Make {
    const ALL: [Self; 2] = [Self::Nvidia, Self::Amd];

    /// As in Apptainer's option.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nvidia => "nv",
            Self::Amd => "rocm",
        }
    }

    /// Apptainer's list of what its driver consists of.
    pub fn list(self) -> &'static str {
        match self {
            Self::Nvidia => "nvliblist.conf",
            Self::Amd => "rocmliblist.conf",
        }
    }

    /// What is there wherever the driver is.
    pub fn control_node(self) -> &'static str {
        match self {
            Self::Nvidia => "/dev/nvidiactl",
            Self::Amd => "/dev/kfd",
        }
    }

    /// The beginnings of its nodes' paths.
    pub fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &["/dev/nvidia"],
            Self::Amd => &["/dev/kfd", "/dev/dri/"],
        }
    }

    /// The driver's sockets.
    pub fn sockets(self) -> &'static [&'static str] {
        match self {
            Self::Nvidia => &["/var/run/nvidia-persistenced/socket"],
            Self::Amd => &[],
        }
    }

    /// Whether asking for the node tells that a GPU of this make is meant. (/dev/dri has those of all makes.)
    fn is_told_by(self, node: &Path) -> bool {
        let name = node.to_string_lossy();
        match self {
            Self::Nvidia => name.starts_with("/dev/nvidia"),
            Self::Amd => name == "/dev/kfd",
        }
    }

    /// Whether the node is one GPU, and not what all programs share.
    fn is_one_gpu(self, node: &Path) -> bool {
        let name = node.to_string_lossy();
        match self {
            Self::Nvidia => name
                .strip_prefix("/dev/nvidia")
                .is_some_and(|rest| rest.starts_with(|sign: char| sign.is_ascii_digit())),
            Self::Amd => name.starts_with("/dev/dri/"),
        }
    }
}

/// A GPU's driver that a container is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub make: Make,
    /// By the annotation: all GPUs that there are. Else the container has named its nodes.
    pub by_annotation: bool,
}

/// A device node outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    pub major: i64,
    pub minor: i64,
}

/// A driver's parts outside.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Driver {
    pub libraries: Vec<Library>,
    pub programs: Vec<PathBuf>,
    /// At the same path in the container.
    pub files: Vec<PathBuf>,
    pub nodes: Vec<Node>,
}

/// Which drivers a container asks for.
///
/// # Errors
/// [`Error::Invalid`] with the annotation's value.
pub fn wanted(spec: &Spec) -> Result<Vec<Wanted>, Error> {
    // A pod's annotations may be its sandbox's too, which computes nothing.
    if config::is_sandbox(spec) {
        return Ok(Vec::new());
    }
    if let Some(value) = config::annotation(spec, ANNOTATION) {
        return annotated(value);
    }
    let linux = spec.linux().as_ref();
    let asked: Vec<&Path> = linux
        .and_then(|linux| linux.devices().as_ref())
        .into_iter()
        .flatten()
        .map(|device| device.path().as_path())
        .collect();
    let told = |make: &Make| asked.iter().any(|node| make.is_told_by(node));
    let by_annotation = false;
    let all = Make::ALL.into_iter().filter(told).map(|make| Wanted {
        make,
        by_annotation,
    });
    Ok(all.collect())
}

fn annotated(value: &str) -> Result<Vec<Wanted>, Error> {
    let mut all: Vec<Wanted> = Vec::new();
    if value == "none" {
        return Ok(all);
    }
    for word in value.split(',').map(str::trim) {
        let make = Make::ALL.into_iter().find(|make| make.word() == word);
        let Some(make) = make else {
            return Err(Error::Invalid {
                field: format!("annotation {ANNOTATION}"),
                why: format!("{value:?} is not nv, rocm, both with a comma between, or none"),
            });
        };
        if all.iter().all(|wanted| wanted.make != make) {
            all.push(Wanted {
                make,
                by_annotation: true,
            });
        }
    }
    Ok(all)
}

/// The libraries that `listed` means: each by the name it is asked for at run time, of each name the first.
/// `inside` are those that lie in [`LIBRARIES`] out here: where there are any, this is a container whose own
/// other libraries are no driver's.
pub fn libraries(listed: &[Listed], inside: &[Library], cache: &[Library]) -> Vec<Library> {
    let from = if inside.is_empty() { cache } else { inside };
    let mut all: Vec<Library> = Vec::new();
    for entry in listed {
        let found: Vec<Library> = match entry {
            Listed::Library(beginning) => from
                .iter()
                .filter(|library| library.name.starts_with(beginning.as_str()))
                .cloned()
                .collect(),
            Listed::LibraryAt(path) => Library::at(path).into_iter().collect(),
            Listed::File(_) | Listed::Program(_) => Vec::new(),
        };
        for library in found {
            if all.iter().all(|known| known.name != library.name) {
                all.push(library);
            }
        }
    }
    all
}

/// Adds a driver to what the container asks for itself.
///
/// # Errors
/// [`Error::Invalid`] for a number that is no device's.
pub fn add(spec: &mut Spec, wanted: Wanted, driver: &Driver) -> Result<(), Error> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let libraries = driver
        .libraries
        .iter()
        .map(|library| (Path::new(LIBRARIES).join(&library.name), &library.path));
    let programs = driver.programs.iter().filter_map(|path| {
        let name = path.file_name()?;
        Some((Path::new(PROGRAMS).join(name), path))
    });
    let files = driver.files.iter().map(|path| (path.clone(), path));
    for (destination, source) in libraries.chain(programs).chain(files) {
        if mounts.iter().any(|m| *m.destination() == destination) {
            continue;
        }
        let mount = MountBuilder::default()
            .destination(destination)
            .source(source)
            .typ("bind")
            .options(OPTIONS.map(str::to_owned));
        mounts.push(mount.build().map_err(unbuilt)?);
    }
    // Whose /dev is the outer one has them.
    let has_own_dev = !mounts.iter().any(|m| {
        let bind = ["bind", "rbind"].map(Some).contains(&m.typ().as_deref())
            || m.options()
                .iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        m.destination() == Path::new("/dev") && bind
    });
    spec.set_mounts(Some(mounts));
    if has_own_dev {
        add_nodes(spec, wanted, driver)?;
    }
    if !driver.libraries.is_empty()
        && let Some(process) = spec.process_mut()
    {
        let mut env = process.env().clone().unwrap_or_default();
        extend_library_path(&mut env);
        process.set_env(Some(env));
    }
    Ok(())
}

fn add_nodes(spec: &mut Spec, wanted: Wanted, driver: &Driver) -> Result<(), Error> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut rules = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().clone())
        .unwrap_or_default();
    for node in &driver.nodes {
        let named = devices.iter().any(|device| *device.path() == node.path);
        let kept = wanted.by_annotation || !wanted.make.is_one_gpu(&node.path);
        if named || !kept {
            continue;
        }
        let device = LinuxDeviceBuilder::default()
            .path(&node.path)
            .typ(LinuxDeviceType::C)
            .major(node.major)
            .minor(node.minor);
        devices.push(device.build().map_err(unbuilt)?);
        // No rules at all: everything is allowed.
        if !rules.is_empty() {
            let rule = LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(LinuxDeviceType::C)
                .major(node.major)
                .minor(node.minor)
                .access("rw");
            rules.push(rule.build().map_err(unbuilt)?);
        }
    }
    linux.set_devices(Some(devices).filter(|all| !all.is_empty()));
    if let Some(resources) = linux.resources_mut()
        && !rules.is_empty()
    {
        resources.set_devices(Some(rules));
    }
    spec.set_linux(Some(linux));
    Ok(())
}

/// A library is looked for in the driver's folder last, as by Apptainer's own set-up.
pub fn extend_library_path(env: &mut Vec<String>) {
    let prefix = format!("{LIBRARY_PATH}=");
    let Some(at) = env.iter().position(|entry| entry.starts_with(&prefix)) else {
        env.push(format!("{prefix}{LIBRARIES}"));
        return;
    };
    let value = &env[at][prefix.len()..];
    if value.split(':').any(|folder| folder == LIBRARIES) {
        return;
    }
    env[at] = if value.is_empty() {
        format!("{prefix}{LIBRARIES}")
    } else {
        format!("{prefix}{value}:{LIBRARIES}")
    };
}

fn unbuilt(e: oci_spec::OciSpecError) -> Error {
    Error::Invalid {
        field: "the driver's part of the spec".into(),
        why: e.to_string(),
    }
}

#[cfg(test)]
mod tests;
