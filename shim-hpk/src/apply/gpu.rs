//! What of a GPU's driver is out here.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use super::{ask::ask, programs::Programs, reaper::Reaper};
use crate::{
    error::Error,
    plan::gpu::{self, Driver, Library, Listed, Make, Node, Wanted},
};

/// The line of `apptainer buildcfg` that tells where its lists are.
const CONFIGURATION: &str = "APPTAINER_CONFDIR=";

/// A driver, and what stands against giving it.
pub struct Found {
    pub driver: Driver,
    pub warning: Option<String>,
}

/// Finds a driver's parts. Where only a device node told of it, the container may do without its files: its
/// user may have them in the image.
///
/// # Errors
/// Where the annotation asks for a driver that isn't here, or that can't be found out.
pub async fn driver(wanted: Wanted, programs: &Programs, reaper: &Reaper) -> Result<Found, Error> {
    match look_for(wanted.make, programs, reaper).await {
        Ok(driver) => Ok(Found {
            driver,
            warning: None,
        }),
        Err(e) if wanted.by_annotation => Err(e),
        Err(e) => Ok(Found {
            driver: Driver::default(),
            warning: Some(format!("the GPU's driver is not given: {e}")),
        }),
    }
}

async fn look_for(make: Make, programs: &Programs, reaper: &Reaper) -> Result<Driver, Error> {
    let control = make.control_node();
    if !is_device(Path::new(control)) {
        let what = make.word();
        return Err(Error::Precondition(format!(
            "the driver {what} ({}): this host has no {control}",
            gpu::ANNOTATION
        )));
    }
    let listed = listed(make, programs, reaper).await?;
    let inside = folder(Path::new(gpu::LIBRARIES))?;
    let inside: Vec<Library> = inside.iter().filter_map(|path| Library::at(path)).collect();
    let cache = if inside.is_empty() {
        cache(programs, reaper).await?
    } else {
        Vec::new()
    };
    let mut driver = Driver {
        libraries: gpu::libraries(&listed, &inside, &cache),
        nodes: nodes(make)?,
        ..Driver::default()
    };
    // The cache may be older than the files.
    driver.libraries.retain(|library| library.path.is_file());
    for entry in &listed {
        match entry {
            Listed::Program(name) => driver.programs.extend(programs.in_path(name)),
            Listed::File(path) if path.is_file() => driver.files.push(path.clone()),
            Listed::File(_) | Listed::Library(_) | Listed::LibraryAt(_) => {}
        }
    }
    let sockets = make.sockets().iter().map(PathBuf::from);
    driver.files.extend(sockets.filter(|path| path.exists()));
    Ok(driver)
}

/// Apptainer's list for a make.
async fn listed(make: Make, programs: &Programs, reaper: &Reaper) -> Result<Vec<Listed>, Error> {
    let mut command = Command::new(programs.apptainer()?);
    let said = ask(command.arg("buildcfg"), reaper).await?;
    let folder = said
        .lines()
        .find_map(|line| line.strip_prefix(CONFIGURATION));
    let Some(folder) = folder else {
        return Err(Error::Precondition(format!(
            "apptainer buildcfg has no line {CONFIGURATION}"
        )));
    };
    let path = Path::new(folder).join(make.list());
    let text = fs::read_to_string(&path).map_err(|source| Error::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    Ok(gpu::parse_list(&text))
}

async fn cache(programs: &Programs, reaper: &Reaper) -> Result<Vec<Library>, Error> {
    let program = programs
        .administrators("ldconfig")
        .ok_or_else(|| Error::NotFound("ldconfig".into()))?;
    let said = ask(Command::new(program).arg("-p"), reaper).await?;
    Ok(gpu::parse_cache(&said))
}

/// The make's device nodes, also those in folders (/dev/nvidia-caps).
fn nodes(make: Make) -> Result<Vec<Node>, Error> {
    let mut all = Vec::new();
    for path in folder(Path::new("/dev"))? {
        for path in if path.is_dir() {
            folder(&path)?
        } else {
            vec![path]
        } {
            let name = path.to_string_lossy();
            let is_its = make.nodes().iter().any(|start| name.starts_with(start));
            if !is_its || path.is_symlink() || !is_device(&path) {
                continue;
            }
            let meta = fs::metadata(&path).map_err(|source| Error::File {
                action: "look at",
                path: path.clone(),
                source,
            })?;
            all.push(Node {
                major: libc::major(meta.rdev()).into(),
                minor: libc::minor(meta.rdev()).into(),
                path,
            });
        }
    }
    Ok(all)
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device())
}

/// What is in a folder, in the order of the names; nothing if there is no such folder.
fn folder(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File {
        action: "list",
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut all = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    all.sort();
    Ok(all)
}
