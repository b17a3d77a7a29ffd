//! The process that holds a local bubble: `hpktainer keep-bubble FOLDER`, started by the first who needs one.
//!
//! It makes the namespaces (in a child, `init`, that does nothing else and is killed with it), runs the uplink and starts
//! it again when it ends, and when no hpktainer uses the bubble any more, ends both and removes the folder. It stays on
//! the host, outside the namespaces, where it has the uplink's sockets and /etc/subuid's helpers.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hpk_uplink::backoff::{Failures, TRIES, WINDOW};
use hpk_uplink::{Addresses, INTERFACE, MTU, Program, Uplink, routes};
use hpk_userns::Ids;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::fcntl::FlockArg;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{ForkResult, Pid, fork};

use super::local::{ALIVE, STATE, State, USERS, remove};
use super::permission;
use crate::container::{make_dir, write_file};
use crate::locks::{lock, try_lock};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "keep-bubble";
/// What it says on stdout when the bubble is ready; else its reasons are in the log.
pub const READY: &str = "ready";

/// Longest wait for the uplink's interface.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between the uplink's end and its next start, then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Networks for containers that are tried in turn.
const POD_NETWORKS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 88, 213, 0),
    Ipv4Addr::new(192, 168, 214, 0),
    Ipv4Addr::new(172, 30, 213, 0),
    Ipv4Addr::new(100, 126, 213, 0),
];

/// Arguments of the hidden subcommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The bubble's folder
    pub folder: PathBuf,
}

/// Makes the bubble and keeps it until nobody uses it.
pub fn run(folder: &Path) -> anyhow::Result<()> {
    nix::unistd::setsid().or_else(ignore_leader)?;
    let program = Program::find(&std::env::var("PATH").unwrap_or_default())?;
    let routes = routes::of_this_host()?;
    let free = |found: Option<Ipv4Net>| {
        found.context("every network that a local bubble could use is one of the host's own")
    };
    let addresses = Addresses {
        network: free(routes::uplink_network(&routes))?,
    };
    let pods = free(routes::first_free(POD_NETWORKS, &routes))?;
    let init = make_namespaces()?;
    // After the fork: init must not hold it when we have gone.
    let Some(_alive) = try_lock(&folder.join(ALIVE), FlockArg::LockExclusiveNonblock)? else {
        bail!("{} has a keeper", folder.display());
    };
    let uplink = Uplink {
        program,
        addresses,
        forward: None,
        pid: init.as_raw(),
        api_socket: folder.join("slirp.sock"),
        ends_with_stdin: true,
    };
    let mut running = start_uplink(&uplink)?;
    await_uplink(&uplink, &mut running.child)?;
    write_network(folder, pods, addresses)?;
    let state = serde_json::to_vec(&State {
        init: init.as_raw(),
    })
    .context("writing the state")?;
    write_file(&folder.join(STATE), 0o600, &state)?;
    tell_ready()?;
    watch(folder, uplink, running, init)
}

/// The starter put it into a process group of its own, whose leader can't make a session: then that is enough.
fn ignore_leader(errno: Errno) -> anyhow::Result<Pid> {
    match errno {
        Errno::EPERM => Ok(nix::unistd::getpid()),
        other => Err(other).context("leaving the session"),
    }
}

/// Starts `init` in a new user and network namespace, with the user's ids mapped.
fn make_namespaces() -> anyhow::Result<Pid> {
    let ids = Ids::of_this_user(&std::env::var("PATH").unwrap_or_default())?;
    let (mut made, tell) = io::pipe().context("making a pipe")?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.context("forking")? {
        ForkResult::Child => {
            drop(made);
            let Err(error) = be_init(tell);
            eprintln!("hpktainer: {:#}", permission::explain(error));
            // SAFETY: _exit takes no memory and ends only this process.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let mut told = [0];
            if made.read(&mut told).context("waiting for the namespaces")? == 0 {
                bail!("the namespaces of a local bubble can't be made");
            }
            ids.map(child.as_raw().unsigned_abs())?;
            Ok(child)
        }
    }
}

/// Holds the namespaces until it is killed.
fn be_init(mut tell: io::PipeWriter) -> anyhow::Result<std::convert::Infallible> {
    // The starter waits for the end of this pipe.
    leave_stdout()?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .context("making a user and network namespace")?;
    // Has the keeper died already, the pipe tells.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to be killed")?;
    tell.write_all(b"!").context("telling the keeper")?;
    drop(tell);
    loop {
        nix::unistd::pause();
    }
}

/// The uplink's program.
#[derive(Debug)]
struct Running {
    child: Child,
    /// Its end is the program's. (In `child`, waiting would close it.)
    _stdin: Option<ChildStdin>,
}

fn start_uplink(uplink: &Uplink) -> anyhow::Result<Running> {
    let program = uplink.program.file();
    let mut child = Command::new(program)
        .args(uplink.plan().0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("running {}", program.display()))?;
    let _stdin = child.stdin.take();
    Ok(Running { child, _stdin })
}

/// Waits until the interface has its default route.
fn await_uplink(uplink: &Uplink, child: &mut Child) -> anyhow::Result<()> {
    let table = PathBuf::from(format!("/proc/{}/net/route", uplink.pid));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let routes = fs::read_to_string(&table);
        let routes = routes.with_context(|| format!("reading {}", table.display()))?;
        if has_default_route(&routes) {
            return Ok(());
        }
        let program = uplink.program.file().display();
        if let Some(status) = child.try_wait().context("looking at the uplink")? {
            bail!("{program} ended: {status}");
        }
        if Instant::now() > deadline {
            bail!("{program} made no uplink within {} s", PATIENCE.as_secs());
        }
        // /proc tells of no change.
        thread::sleep(Duration::from_millis(5));
    }
}

fn has_default_route(table: &str) -> bool {
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.next() == Some(INTERFACE) && fields.next() == Some("00000000")
    })
}

/// What CNI callers and containers read.
fn write_network(folder: &Path, pods: Ipv4Net, addresses: Addresses) -> anyhow::Result<()> {
    let net_d = folder.join("net.d");
    make_dir(&net_d)?;
    let text = serde_json::to_vec_pretty(&conflist(folder, pods)).context("writing a conflist")?;
    write_file(&net_d.join("10-hpk.conflist"), 0o600, &text)?;
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let text = resolv_conf(&host, addresses.dns());
    write_file(&folder.join("resolv.conf"), 0o600, text.as_bytes())
}

fn conflist(folder: &Path, pods: Ipv4Net) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.1.0",
        "name": "hpktainer-local",
        "plugins": [{
            "type": "cni-hpk",
            "datapath": "veth",
            "subnet": pods.to_string(),
            "ipMasq": true,
            "mtu": MTU,
            "dataDir": folder.join("cni"),
        }],
    })
}

/// The host's, with the uplink as the server: the host's own may listen on its loopback only.
fn resolv_conf(host: &str, dns: Ipv4Addr) -> String {
    let kept = host.lines().filter(|line| {
        let word = line.split_whitespace().next();
        matches!(word, Some("search" | "domain" | "options"))
    });
    let mut text = format!("nameserver {dns}\n");
    for line in kept {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Says so, and lets go of the starter's pipe.
fn tell_ready() -> anyhow::Result<()> {
    println!("{READY}");
    leave_stdout()
}

fn leave_stdout() -> anyhow::Result<()> {
    let null = File::options().write(true).open("/dev/null");
    nix::unistd::dup2_stdout(null.context("opening /dev/null")?).context("leaving stdout")
}

/// Keeps the uplink running until nobody uses the bubble, then ends all and removes the folder.
fn watch(folder: &Path, uplink: Uplink, running: Running, init: Pid) -> anyhow::Result<()> {
    // Killed and reaped only under this lock: a number that was reaped may be another's.
    let running = Arc::new(Mutex::new(running));
    let kept = Arc::clone(&running);
    thread::spawn(move || {
        let Err(error) = keep_uplink(&uplink, &kept, init);
        eprintln!("hpktainer: {error:#}");
        std::process::exit(1);
    });
    let _last = lock(&folder.join(USERS), FlockArg::LockExclusive)?;
    let mut ours = locked(&running);
    // Of one that was reaped std knows it, and kills nobody.
    let ended = [
        ours.child.kill().context("ending the uplink"),
        kill(init, Signal::SIGKILL).context("ending the namespaces"),
        remove(folder),
    ];
    // Nobody is to see their end as a fault: the lock is kept to ours.
    std::mem::forget(ours);
    let failures = ended.into_iter().filter_map(Result::err);
    let failures: Vec<String> = failures.map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn keep_uplink(
    uplink: &Uplink,
    running: &Mutex<Running>,
    init: Pid,
) -> anyhow::Result<std::convert::Infallible> {
    let mut failures = Failures::new(FIRST_PAUSE);
    loop {
        let ended = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let ended = ended.context("waiting for the uplink")?;
        let status = {
            let mut running = locked(running);
            if ended.pid() == Some(init) {
                bail!("the local bubble's first process ended: {ended:?}");
            }
            running.child.wait().context("waiting for the uplink")?
        };
        let Some(pause) = failures.add(Instant::now()) else {
            let window = WINDOW.as_secs();
            bail!("the uplink ended {TRIES} times within {window} s, last with {status}");
        };
        eprintln!("hpktainer: the uplink ended ({status}) and is started again");
        // Unlocked: the bubble's end doesn't wait for it.
        thread::sleep(pause);
        *locked(running) = start_uplink(uplink)?;
    }
}

fn locked(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uplink_is_there_with_its_default_route() {
        let table = "Iface\tDestination\tGateway\nuplink0\t0002000A\t0\n";
        assert!(!has_default_route(table));
        assert!(has_default_route(&format!(
            "{table}uplink0\t00000000\t0202000A\n"
        )));
        assert!(!has_default_route("eth0\t00000000\t0202000A\n"));
    }

    #[test]
    fn names_are_asked_of_the_uplink_and_searched_as_on_the_host() {
        let host = "# x\nnameserver 127.0.0.53\nsearch a.b\noptions ndots:2\n";
        assert_eq!(
            resolv_conf(host, Ipv4Addr::new(10, 0, 2, 3)),
            "nameserver 10.0.2.3\nsearch a.b\noptions ndots:2\n"
        );
    }

    #[test]
    fn containers_get_a_network_of_their_own() {
        let conf = conflist(Path::new("/tmp/x"), "10.88.213.0/24".parse().unwrap());
        let plugin = &conf["plugins"][0];
        assert_eq!(plugin["datapath"], "veth");
        assert_eq!(plugin["subnet"], "10.88.213.0/24");
        assert_eq!(plugin["dataDir"], "/tmp/x/cni");
    }
}
