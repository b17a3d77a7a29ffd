//! `init` and `enter`: the conversation with the shim, up to the exec.

use std::{
    io::{Read, Seek},
    os::fd::{AsFd, BorrowedFd, IntoRawFd as _, OwnedFd},
    process::ExitCode,
};

use hpk_pause::{
    channel, sys,
    wire::{self, Config, Fd},
};
use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns},
};

use crate::{
    error::{Context, Error},
    files, process,
};

/// Which of the two this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// First program of a new container, inside it already.
    Init,
    /// On the outside, about to join a container.
    Enter,
}

/// The socket to the shim.
pub struct Shim(OwnedFd);

impl Shim {
    /// Tells of something asked for that was not done, and that isn't worth failing for.
    pub fn warn(&self, text: &str) {
        // The shim gone: nobody is left to be warned.
        let _ = channel::send(self.0.as_fd(), channel::WARNING, text.as_bytes(), &[]);
    }

    /// Hands over the terminal's master.
    pub fn give_terminal(&self, master: BorrowedFd<'_>) -> Result<(), Error> {
        channel::send(self.0.as_fd(), channel::TERMINAL, &[], &[master])
            .context(|| "send the terminal to the shim".into())
    }

    fn send(&self, kind: u8, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        channel::send(self.0.as_fd(), kind, &[], fds).context(|| "talk to the shim".into())
    }

    fn expect(&self, kind: u8) -> Result<channel::Message, Error> {
        let message = channel::receive(self.0.as_fd())
            .context(|| "listen to the shim".into())?
            .ok_or_else(|| Error::plain("the shim hung up"))?;
        if message.kind == kind {
            Ok(message)
        } else {
            Err(Error::plain(format!(
                "unexpected message {:?} from the shim",
                message.kind as char
            )))
        }
    }
}

/// The descriptors that came with the configuration.
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// The one at `index`.
    pub fn get(&self, index: Fd) -> Result<BorrowedFd<'_>, Error> {
        self.0.get(index as usize).map(AsFd::as_fd).ok_or_else(|| {
            Error::plain(format!(
                "descriptor {index} did not come with the configuration"
            ))
        })
    }
}

/// Runs one of the modes; only returns if it failed, having told the shim.
pub fn run(mode: Mode, socket: &str) -> ExitCode {
    let opened = socket.parse().ok().and_then(|fd| sys::inherited(fd).ok());
    let Some(socket) = opened else {
        eprintln!("hpk-pause: no socket to a shim at descriptor {socket:?}");
        return ExitCode::from(2);
    };
    let shim = Shim(socket);
    let Err(error) = run_with(mode, &shim);
    // If the shim is gone there is nobody to tell, and the exit code says enough.
    let _ = channel::send(
        shim.0.as_fd(),
        channel::FAILED,
        error.to_string().as_bytes(),
        &[],
    );
    ExitCode::from(127)
}

fn run_with(mode: Mode, shim: &Shim) -> Result<std::convert::Infallible, Error> {
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, 0, 0);
    sys::set_name(c"hpk-init");
    sys::close_on_exec_from(3).context(|| "mark descriptors close-on-exec".into())?;
    if mode == Mode::Init {
        shim.send(channel::HELLO, &[])?;
    }
    let (config, fds) = receive_config(shim)?;
    // Before there are limits. Its writing end is this program's alone, and goes with the exec, or
    // with the process, which tells what failed before: dropped here it would end too early.
    let (until_exec, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .context(|| "make a pipe".into())?;
    let _ = held.into_raw_fd();

    if let Some(adjustment) = config.process.oom_score_adj {
        // Before the process stops being dumpable: after that /proc/self isn't ours in a user namespace.
        process::set_oom_score(adjustment, shim)?;
    }
    if mode == Mode::Enter {
        // The program of this process, a file of the host, must not be reachable from inside the
        // container as /proc/PID/exe (CVE-2019-5736).
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).context(|| "become undumpable".into())?;
    }
    join(&config, &fds)?;
    if let Some(setup) = &config.setup {
        files::set_up(setup, &config.process.cwd, &fds, shim)?;
    }
    let mut program = process::prepare(&config.process, &fds, shim)?;
    if mode == Mode::Init && config.process.terminal {
        files::bind_console(&program)?;
    }
    program.take_credentials(&config.process, shim)?;
    shim.send(channel::READY, &[until_exec.as_fd()])?;
    let go = shim.expect(channel::GO)?;
    if let Some(stdin) = go.fds.first() {
        nix::unistd::dup2_stdin(stdin).context(|| "set stdin".into())?;
    }
    Err(program.exec())
}

fn receive_config(shim: &Shim) -> Result<(Config, Descriptors), Error> {
    let mut message = shim.expect(channel::CONFIG)?;
    let total = <[u8; 4]>::try_from(message.body.as_slice())
        .map(u32::from_le_bytes)
        .map_err(|_| Error::plain(wire::Malformed.to_string()))? as usize;
    let mut fds = std::mem::take(&mut message.fds);
    while fds.len() < total {
        fds.append(&mut shim.expect(channel::MORE)?.fds);
    }
    let mut bytes = Vec::new();
    if fds.is_empty() {
        return Err(Error::plain(wire::Malformed.to_string()));
    }
    let mut file = std::fs::File::from(fds[0].try_clone().context(|| "dup".into())?);
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .context(|| "read the configuration".into())?;
    let config = wire::decode(&bytes).map_err(|e| Error::plain(e.to_string()))?;
    Ok((config, Descriptors(fds)))
}

/// Joins namespaces and the root directory. With a PID namespace among them the caller goes on as
/// the child of a fork, and the parent ends: the shim, a sub-reaper, becomes the child's parent.
fn join(config: &Config, fds: &Descriptors) -> Result<(), Error> {
    let mut must_fork = false;
    for &(fd, flag) in &config.namespaces {
        let flags = CloneFlags::from_bits_retain(flag as libc::c_int);
        setns(fds.get(fd)?, flags).context(|| format!("join namespace {flags:?}"))?;
        must_fork |= flags.contains(CloneFlags::CLONE_NEWPID);
    }
    if let Some(root) = config.root {
        nix::unistd::fchdir(fds.get(root)?).context(|| "enter the container's root".into())?;
        nix::unistd::chroot(".").context(|| "chroot to the container's root".into())?;
    }
    if must_fork && !sys::fork_single_threaded().context(|| "fork".into())? {
        std::process::exit(0);
    }
    Ok(())
}
