//! `start`: the address of the pod's shim, which is started unless it runs.
//!
//! Two forms (containerd's docs/runtime-v2.md): since containerd 2.3 a `BootstrapParams` message on
//! stdin and a `BootstrapResult` as the answer; before, flags and environment. There the answer is the
//! plain address, which every containerd takes for Task API v2, or the JSON that names v3, for a
//! caller whose MAX_SHIM_VERSION says that it knows it. Both versions are served at the same address.

use std::{
    io::{IsTerminal, Read},
    os::{
        fd::AsRawFd,
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::Path,
    process::{Command, Stdio},
    time::SystemTime,
};

use containerd_shim::{
    Flags, StartOpts,
    bootstrap::any_is,
    protos::{
        bootstrap_api::{BootstrapParams, BootstrapResult},
        protobuf::{
            Message,
            well_known_types::{any::Any, timestamp::Timestamp},
        },
        shim::oci::Options,
    },
};
use hpk_cgroup::hierarchies;

use crate::{config, error::Error, serve};

/// As in containerd.
const INPUT_LIMIT: u64 = 10 << 20;
/// Killed for lack of memory before its parent: oom_score_adj's top.
const OOM_SCORE_TOP: i32 = 1000;
const TASK_API: i32 = containerd_shim::protos::TASK_API_VERSION;

/// Does `start` in the bundle, which is the working directory; gives the answer.
pub fn start(flags: &Flags) -> Result<Vec<u8>, Error> {
    let input = read_input()?;
    let (options, bootstrap) = parameters(&input, flags)?;
    let address = ensure_shim(&options)?;
    write_address(&address)?;
    if bootstrap {
        let result = BootstrapResult {
            version: TASK_API,
            address,
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        return crate::encode(&result);
    }
    let knows_v3 = std::env::var("MAX_SHIM_VERSION").is_ok_and(|v| v == TASK_API.to_string());
    Ok(if knows_v3 {
        let reply = serde_json::json!({
            "version": TASK_API, "address": address, "protocol": "ttrpc"
        });
        reply.to_string().into_bytes()
    } else {
        address.into_bytes()
    })
}

fn read_input() -> Result<Vec<u8>, Error> {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin
            .lock()
            .take(INPUT_LIMIT)
            .read_to_end(&mut input)
            .map_err(Error::system("read the parameters from stdin"))?;
    }
    Ok(input)
}

/// What the caller says, and whether in the form of containerd 2.3.
fn parameters(input: &[u8], flags: &Flags) -> Result<(StartOpts, bool), Error> {
    let environment = |name: &str| std::env::var(name).unwrap_or_default();
    let params = BootstrapParams::parse_from_bytes(input).ok();
    // Anything decodes as a message; ours names what the flags name.
    let (mut options, bootstrap) = match params {
        Some(p) if p.instance_id == flags.id && p.namespace == flags.namespace => {
            (StartOpts::from(p), true)
        }
        _ => {
            let mut options = StartOpts {
                id: flags.id.clone(),
                namespace: flags.namespace.clone(),
                address: flags.address.clone(),
                publish_binary: flags.publish_binary.clone(),
                ttrpc_address: environment("TTRPC_ADDRESS"),
                ..StartOpts::default()
            };
            options.extensions = Any::parse_from_bytes(input).into_iter().collect();
            (options, false)
        }
    };
    if options.address.is_empty() {
        options.address = environment("GRPC_ADDRESS");
    }
    options.debug |= flags.debug;
    options.socket_dir = options
        .socket_dir
        .or_else(|| std::env::var("HPK_SHIM_SOCKET_DIR").ok());
    for (field, value) in [
        ("-id", &options.id),
        ("-namespace", &options.namespace),
        ("TTRPC_ADDRESS", &options.ttrpc_address),
    ] {
        if value.is_empty() {
            return Err(Error::Invalid {
                field: field.into(),
                why: "it is missing".into(),
            });
        }
    }
    Ok((options, bootstrap))
}

/// The address of the pod's shim. The listening socket is made here, so that the caller may connect
/// as soon as it has the address.
fn ensure_shim(options: &StartOpts) -> Result<String, Error> {
    let grouping = config::grouping(&config::load(Path::new("."))?, &options.id);
    let address = shorter(&options.socket_address(&grouping));
    let socket = Path::new(address.trim_start_matches("unix://"));
    let failed = |action| {
        move |source| Error::File {
            action,
            path: socket.to_owned(),
            source,
        }
    };
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    }
    let listener = loop {
        match UnixListener::bind(socket) {
            Ok(listener) => break listener,
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(failed("listen on")(e)),
        }
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(address),
            // The shim that left it is dead.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                let is_socket = socket.metadata().is_ok_and(|m| m.file_type().is_socket());
                if !is_socket {
                    return Err(failed("listen on")(e));
                }
                std::fs::remove_file(socket).map_err(failed("remove"))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed("connect to")(e)),
        }
    };
    if let Err(e) = spawn(options, &address, &listener) {
        // Nobody serves it: the next `start` must not wait for an answer.
        std::fs::remove_file(socket).map_err(failed("remove"))?;
        return Err(e);
    }
    Ok(address)
}

/// With half of the digest that is the socket's name: sun_path has 108 bytes, and sites' node-local folders are long.
fn shorter(address: &str) -> String {
    const DIGITS: usize = 32;
    match address.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{}", name.get(..DIGITS).unwrap_or(name)),
        None => address.to_owned(),
    }
}

fn spawn(options: &StartOpts, address: &str, listener: &UnixListener) -> Result<(), Error> {
    let program = std::env::current_exe().map_err(Error::system("find this program"))?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &options.namespace, "-id", &options.id])
        .args(["-address", &options.address, "-socket", address])
        .env("TTRPC_ADDRESS", &options.ttrpc_address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if options.debug {
        command.arg("-debug");
    }
    let number = listener.as_raw_fd();
    // SAFETY: system calls with integers only.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || serve::inherit_listener(number));
    }
    let mut child = command.spawn().map_err(Error::system("start the shim"))?;
    let confined = confine(child.id(), options);
    if confined.is_err() {
        let ended = child.kill().and_then(|()| child.wait());
        ended.map_err(Error::system("end the shim"))?;
    }
    confined
}

/// The shim's own cgroup (runtime option `ShimCgroup`), and a better victim than its parent.
fn confine(pid: u32, options: &StartOpts) -> Result<(), Error> {
    let runtime_options = options
        .extensions
        .iter()
        .find(|any| any_is::<Options>(any))
        .map(|any| Options::parse_from_bytes(&any.value))
        .transpose()
        .map_err(|e| Error::Invalid {
            field: "runtime options".into(),
            why: e.to_string(),
        })?;
    if let Some(group) = runtime_options
        .map(|o| o.shim_cgroup)
        .filter(|g| !g.is_empty())
    {
        enter_cgroup(pid, &group)?;
    }
    let path = |pid: u32| format!("/proc/{pid}/oom_score_adj");
    let parent = path(std::os::unix::process::parent_id());
    let score = std::fs::read_to_string(&parent)
        .map_err(Error::system(format!("read {parent}")))?
        .trim()
        .parse::<i32>()
        .unwrap_or(OOM_SCORE_TOP);
    if score < OOM_SCORE_TOP {
        let own = path(pid);
        std::fs::write(&own, (score + 1).to_string())
            .map_err(Error::system(format!("write {own}")))?;
    }
    Ok(())
}

fn enter_cgroup(pid: u32, group: &str) -> Result<(), Error> {
    let step = || format!("move the shim to cgroup {group}");
    for hierarchy in hierarchies::probe().map_err(Error::system(step()))? {
        let directory = hierarchy.mount.join(group.trim_start_matches('/'));
        // It is the caller's to make, on the hierarchies it likes.
        if directory.exists() {
            std::fs::write(directory.join("cgroup.procs"), pid.to_string())
                .map_err(Error::system(step()))?;
        }
    }
    Ok(())
}

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    }
}

fn write_address(address: &str) -> Result<(), Error> {
    std::fs::write("address", address).map_err(|source| Error::File {
        action: "write",
        path: "address".into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            id: "c1".into(),
            namespace: "default".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Flags::default()
        }
    }

    #[test]
    fn a_socket_has_half_of_its_digest_as_name() {
        let digest = "0123456789abcdef".repeat(4);
        let short = shorter(&format!("unix:///s/{digest}"));
        assert_eq!(short, "unix:///s/0123456789abcdef0123456789abcdef");
        assert_eq!(shorter("unix:///s/x"), "unix:///s/x");
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/t.sock".into(),
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        }
    }

    #[test]
    fn the_message_of_containerd_2_3_is_told_from_runtime_options() {
        let input = params().write_to_bytes().unwrap();
        let (options, bootstrap) = parameters(&input, &flags()).unwrap();
        assert!(bootstrap);
        assert_eq!(options.socket_dir.as_deref(), Some("/run/s"));
        assert_eq!(options.ttrpc_address, "/run/t.sock");
    }

    #[test]
    fn parameters_without_an_events_address_are_refused() {
        let mut params = params();
        params.containerd_ttrpc_address.clear();
        let input = params.write_to_bytes().unwrap();
        let error = parameters(&input, &flags()).unwrap_err().to_string();
        assert_eq!(error, "TTRPC_ADDRESS is invalid: it is missing");
    }
}
