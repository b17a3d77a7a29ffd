//! Apptainer, and through it the container's first program.
//!
//! 1. A child makes a mount namespace, mounts the root file system there, makes or joins the other
//!    namespaces, and execs Apptainer: nothing it mounts outlives the container.
//! 2. Apptainer execs `hpk-pause init` as the container's first process, which says hello.
//! 3. Apptainer's process (23 MB) is killed, unless HPK_KEEP_ENGINE=1: the container's process becomes the
//!    shim's child.
//! 4. The spec's hooks run, outside.
//! 5. The process is configured, sets everything up, and waits.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use hpk_cgroup::Cgroup;
use hpk_pause::{sys, wire};
use nix::{
    sched::CloneFlags,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use oci_spec::runtime::LinuxNamespaceType;

use super::{
    Waiting, channel, hooks,
    outside::{Outside, open_namespace},
    programs::Programs,
    reaper,
    words::words_of,
};
use crate::{
    error::Error,
    plan::{self, Source, engine, hooks::Hooks, namespaces},
    record::Record,
};

/// Where a container's traces are.
pub struct Place<'a> {
    pub bundle: &'a Path,
    pub cgroup: &'a mut Cgroup,
    pub hooks: &'a Hooks,
}

/// Creates a container's process, up to but not including its program.
///
/// # Errors
/// With the reason of whoever failed: Apptainer's own words, or the step of the set-up. Nothing is
/// left of the container then.
pub async fn launch(
    plan: plan::Container,
    streams: Vec<OwnedFd>,
    place: Place<'_>,
    programs: &Programs,
    reaper: &reaper::Reaper,
) -> Result<Waiting, Error> {
    let mut started = Started {
        processes: Vec::new(),
        reaper,
    };
    let made = try_launch(plan, &streams, place, programs, &mut started).await;
    if made.is_err() {
        started.end().await;
    }
    made
}

async fn try_launch(
    mut plan: plan::Container,
    streams: &[OwnedFd],
    Place {
        bundle,
        cgroup,
        hooks: run_before,
    }: Place<'_>,
    programs: &Programs,
    started: &mut Started<'_>,
) -> Result<Waiting, Error> {
    plan.show_cgroup(&cgroup.views());
    let trees = open_sources(&mut plan)?;
    let pid_namespace = match &plan.pid_namespace {
        namespaces::Pid::Join(path) => {
            let field = namespaces::field(LinuxNamespaceType::Pid);
            Some(open_namespace(&field, path, CloneFlags::CLONE_NEWPID)?)
        }
        namespaces::Pid::New | namespaces::Pid::Host => None,
    };
    let (mut channel, theirs) = channel::pair()?;
    let said = memfd_create(c"apptainer", MFdFlags::MFD_CLOEXEC)
        .map_err(Error::system("make a file for apptainer's messages"))?;
    let mut record = Record {
        cgroup: cgroup.made().to_vec(),
        ..Record::default()
    };
    // Before there is anything to clean up: a shim killed from here on leaves no unknown trace.
    record.write(bundle)?;
    let mut command = apptainer(&plan, bundle, programs, &theirs, &said)?;
    let child = command.spawn().map_err(|source| {
        // The child says more than an errno carries.
        let words = words_of(&said);
        Error::System {
            action: if words.is_empty() {
                "run apptainer".into()
            } else {
                words
            },
            source,
        }
    })?;
    drop(command);
    drop(theirs);
    let engine_pid = child.id() as i32;
    let engine_exit = started.watch(engine_pid);
    record.engine = Some(engine_pid);
    record.write(bundle)?;

    let Some(first_pid) = channel.hello().await? else {
        let exit = reaper::ended(engine_exit).await;
        return Err(Error::Engine {
            ended: describe(exit.code),
            said: words_of(&said),
        });
    };
    let mut exit = started.watch(first_pid);
    record.init = Some(first_pid);
    record.write(bundle)?;
    // In a PID namespace joined by path the first process forks and ends, and Apptainer with it.
    if programs.keep_engine && pid_namespace.is_none() {
        // It stays the container's parent: only by its end does the shim learn of the container's.
        exit = engine_exit;
    } else {
        terminate(engine_pid);
        reaper::ended(engine_exit).await;
        record.engine = None;
    }
    for warning in cgroup.add(first_pid) {
        log::warn!("{}: {warning}", bundle.display());
    }
    // The namespaces are there, and nothing is set up in them yet.
    let state = run_before.state("creating", Some(first_pid));
    hooks::run(&run_before.create, &state, started.reaper).await?;

    let mut fds: Vec<BorrowedFd<'_>> = streams.iter().map(AsFd::as_fd).collect();
    fds.extend(trees.iter().map(AsFd::as_fd));
    let mut namespaces = Vec::new();
    if let Some(namespace) = &pid_namespace {
        fds.push(namespace.as_fd());
        namespaces.push((
            fds.len() as wire::Fd,
            CloneFlags::CLONE_NEWPID.bits() as u32,
        ));
    }
    let config = wire::Config {
        namespaces,
        root: None,
        setup: Some(plan.setup),
        process: plan.process,
    };
    channel.configure(&config, &fds).await?;
    drop(trees);
    let ready = match channel.ready().await? {
        Some(ready) => ready,
        None => {
            let exit = reaper::ended(exit).await;
            return Err(Error::Container(format!(
                "the container's first process ended in its set-up ({})",
                describe(exit.code)
            )));
        }
    };
    for warning in &ready.warnings {
        log::warn!("{}: {warning}", bundle.display());
    }
    if ready.pid != first_pid {
        // In a PID namespace joined by path the first process forked; its child is the container.
        let first_exit = std::mem::replace(&mut exit, started.watch(ready.pid));
        reaper::ended(first_exit).await;
    }
    record.init = Some(ready.pid);
    record.write(bundle)?;
    Ok(Waiting {
        pid: ready.pid,
        exit,
        channel,
        terminal: ready.terminal,
    })
}

/// Processes that must not outlive a failure.
struct Started<'a> {
    processes: Vec<(i32, reaper::ExitReceiver)>,
    reaper: &'a reaper::Reaper,
}

impl Started<'_> {
    fn watch(&mut self, pid: i32) -> reaper::ExitReceiver {
        let exit = self.reaper.watch(pid);
        self.processes.push((pid, exit.clone()));
        exit
    }

    /// Kills them and waits until they are gone: only then can their cgroup be removed.
    async fn end(self) {
        for (pid, _) in &self.processes {
            terminate(*pid);
        }
        for (_, exit) in self.processes {
            reaper::ended(exit).await;
        }
    }
}

/// Kills a process.
pub fn terminate(pid: i32) {
    // ESRCH: it is gone already, which is what is wanted.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn describe(code: u32) -> String {
    match code {
        // Signals go up to 64; an exit code may be higher.
        129..=192 => format!("killed by signal {}", code - 128),
        _ => format!("exit code {code}"),
    }
}

fn open_sources(plan: &mut plan::Container) -> Result<Vec<OwnedFd>, Error> {
    let first = plan::first_source(plan.process.terminal);
    let mut trees = Vec::with_capacity(plan.sources.len());
    for (
        n,
        Source {
            path,
            recursive,
            field,
            optional,
        },
    ) in plan.sources.iter().enumerate()
    {
        let step = || format!("{field}: open {}", path.display());
        let c_path =
            CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Error::Invalid {
                field: field.clone(),
                why: "a NUL in the path".into(),
            })?;
        let opened = match device_of(&plan.setup, first + n as wire::Fd) {
            Some(device) if !is_that_device(path, device) => {
                Err(std::io::ErrorKind::NotFound.into())
            }
            _ => sys::open_tree(&c_path, *recursive),
        };
        let fd = match opened {
            Ok(tree) => tree,
            Err(_) if *optional => {
                // The slot stays, so that the others keep their numbers; the device is made anew.
                let index = first + n as wire::Fd;
                for device in plan
                    .setup
                    .devices
                    .iter_mut()
                    .filter(|d| d.tree == Some(index))
                {
                    device.tree = None;
                }
                File::open("/dev/null")
                    .map_err(Error::system("open /dev/null"))?
                    .into()
            }
            Err(e) => return Err(Error::system(step())(e)),
        };
        trees.push(fd);
    }
    Ok(trees)
}

fn device_of(setup: &wire::Setup, source: wire::Fd) -> Option<&wire::Device> {
    setup.devices.iter().find(|d| d.tree == Some(source))
}

/// Whether the node outside is the one the spec means, and not another of that name.
fn is_that_device(path: &Path, device: &wire::Device) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|meta| {
        let number = libc::makedev(device.major, device.minor);
        meta.mode() & libc::S_IFMT == device.kind && meta.rdev() == number
    })
}

/// The command, ready to spawn.
fn apptainer(
    plan: &plan::Container,
    bundle: &Path,
    programs: &Programs,
    socket: &OwnedFd,
    said: &OwnedFd,
) -> Result<Command, Error> {
    let pause = programs.pause()?.as_raw_fd();
    let configuration = bundle.join("apptainer.conf");
    std::fs::write(&configuration, engine::CONFIGURATION).map_err(|source| Error::File {
        action: "write",
        path: configuration.clone(),
        source,
    })?;
    let permitted = sys::permitted_capabilities().map_err(Error::system("read capabilities"))?;
    let mut command = Command::new(programs.apptainer()?);
    command
        .args(engine::arguments(
            &configuration,
            &plan.rootfs,
            plan.pid_namespace == namespaces::Pid::New,
            permitted,
            &format!("/proc/self/fd/{pause}"),
            &socket.as_raw_fd().to_string(),
        ))
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", bundle)
        .env("LANG", "C")
        // It lives for some 70 ms: collecting garbage would only take a tenth of its time.
        .env("GOGC", if programs.keep_engine { "100" } else { "off" })
        .env("APPTAINER_CONFIGDIR", bundle.join("apptainer"))
        .stdin(Stdio::null())
        .stdout(clone_of(said)?)
        .stderr(clone_of(said)?);
    let outside = Outside::new(plan, [pause, socket.as_raw_fd()])?;
    // SAFETY: `Outside::run` only makes system calls on what was allocated before the fork.
    unsafe { command.pre_exec(move || outside.run()) };
    Ok(command)
}

fn clone_of(fd: &OwnedFd) -> Result<Stdio, Error> {
    fd.try_clone()
        .map(Stdio::from)
        .map_err(Error::system("duplicate a descriptor"))
}
