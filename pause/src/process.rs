//! From root with everything to the user's program with what the spec gives it.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            ffi::OsStrExt,
            fs::{OpenOptionsExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use hpk_pause::{
    sys,
    wire::{Capabilities, Process, Seccomp},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, fchown, setgroups, setresgid, setresuid, setsid},
};

use crate::{
    error::{Context, Error},
    first::{Descriptors, Shim},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is left to do is the exec.
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    /// The terminal's own end, its number in /dev/pts.
    pub terminal: Option<u32>,
    /// Left to install: as late as can be, as it may forbid what this program still does.
    filter: Option<Seccomp>,
}

/// Terminal or streams, directory, limits; everything that wants root's rights. The program's path
/// is filled in by [`Program::take_credentials`], as only its user may tell what it can execute.
pub fn prepare(process: &Process, fds: &Descriptors, shim: &Shim) -> Result<Program, Error> {
    // A session of its own, so that a signal of the terminal's stays in the container.
    match setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(e) => return Err(e).context(|| "start a session".into()),
    }
    let terminal = if process.terminal {
        Some(open_terminal(process, shim)?)
    } else {
        use_streams(process, fds)?;
        None
    };
    set_rlimits(process, shim)?;
    if let Some(mask) = process.umask {
        umask(Mode::from_bits_truncate(mask));
    }
    Ok(Program {
        path: CString::default(),
        args: c_strings(&process.args)?,
        env: environment(process)?,
        terminal,
        filter: None,
    })
}

impl Program {
    /// Becomes the spec's user, enters the working directory and finds the program.
    pub fn take_credentials(&mut self, process: &Process, shim: &Shim) -> Result<(), Error> {
        let cwd = if process.cwd.is_empty() {
            "/"
        } else {
            &process.cwd
        };
        // As root first (a directory closed to the user), else as the user (NFS with root squash).
        let entered = std::env::set_current_dir(cwd);
        // Without no_new_privs only CAP_SYS_ADMIN, which may go next, may install a filter.
        let privileged = !process.no_new_privileges && !sys::has_no_new_privileges();
        if privileged {
            install_filter(process.seccomp.as_ref())?;
        }
        become_user(process, shim)?;
        if entered.is_err() {
            std::env::set_current_dir(cwd).context(|| format!("enter working directory {cwd}"))?;
        }
        self.path = find_program(process)?;
        if !privileged {
            self.filter = process.seccomp.clone();
        }
        Ok(())
    }

    /// Becomes the program; returns why it couldn't.
    pub fn exec(&self) -> Error {
        sys::reset_signals();
        if let Err(e) = install_filter(self.filter.as_ref()) {
            return e;
        }
        let Err(e) = nix::unistd::execve(&self.path, &self.args, &self.env);
        Error::plain(format!("exec {:?}: {}", self.path, io::Error::from(e)))
    }
}

fn install_filter(filter: Option<&Seccomp>) -> Result<(), Error> {
    match filter {
        Some(filter) => sys::set_seccomp_filter(filter.flags, &filter.program)
            .context(|| "install the seccomp filter".into()),
        None => Ok(()),
    }
}

/// oom_score_adj of this process and what it starts.
pub fn set_oom_score(adjustment: i32, shim: &Shim) -> Result<(), Error> {
    match std::fs::write("/proc/self/oom_score_adj", adjustment.to_string()) {
        // Lowering it wants CAP_SYS_RESOURCE in the machine's own user namespace.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            shim.warn(&format!("process.oomScoreAdj {adjustment} not set: {e}"));
            Ok(())
        }
        other => other.context(|| format!("set oom_score_adj to {adjustment}")),
    }
}

fn open_terminal(process: &Process, shim: &Shim) -> Result<u32, Error> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open("/dev/ptmx", flags, Mode::empty()).context(|| "open /dev/ptmx".into())?;
    let number = sys::unlock_terminal(master.as_fd()).context(|| "unlock the terminal".into())?;
    let path = format!("/dev/pts/{number}");
    let slave = open(path.as_str(), flags, Mode::empty()).context(|| format!("open {path}"))?;
    if let Some((columns, rows)) = process.console_size {
        sys::set_terminal_size(slave.as_fd(), columns as u16, rows as u16)
            .context(|| "set the terminal's size".into())?;
    }
    give_to_user(slave.as_fd(), process);
    for target in 0..3 {
        put_at(slave.as_fd(), target)?;
    }
    sys::set_controlling_terminal(slave.as_fd())
        .context(|| "take the controlling terminal".into())?;
    shim.give_terminal(master.as_fd())?;
    Ok(number)
}

fn use_streams(process: &Process, fds: &Descriptors) -> Result<(), Error> {
    for (target, &index) in (0..3).zip(&process.stdio) {
        let stream = fds.get(index)?;
        give_to_user(stream, process);
        put_at(stream, target)?;
    }
    Ok(())
}

/// Lets the user reopen a stream as /dev/stdout. Best effort, as in runc: /dev/null stays root's,
/// and some file systems refuse.
fn give_to_user(fd: BorrowedFd<'_>, process: &Process) {
    let is_stream = File::from(match fd.try_clone_to_owned() {
        Ok(fd) => fd,
        Err(_) => return,
    })
    .metadata()
    .is_ok_and(|meta| {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let kind = meta.file_type();
        kind.is_fifo() || (kind.is_char_device() && libc::major(meta.rdev()) == 136)
    });
    if is_stream {
        let _ = fchown(fd, Some(Uid::from_raw(process.uid)), None);
    }
}

fn put_at(fd: BorrowedFd<'_>, target: i32) -> Result<(), Error> {
    let result = match target {
        0 => nix::unistd::dup2_stdin(fd),
        1 => nix::unistd::dup2_stdout(fd),
        _ => nix::unistd::dup2_stderr(fd),
    };
    result.context(|| format!("set descriptor {target}"))
}

fn set_rlimits(process: &Process, shim: &Shim) -> Result<(), Error> {
    for limit in &process.rlimits {
        let step = || {
            format!(
                "set limit {} to {}/{}",
                limit.resource, limit.soft, limit.hard
            )
        };
        match sys::set_rlimit(limit.resource, limit.soft, limit.hard) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                let (_, hard) = sys::rlimit(limit.resource).context(step)?;
                shim.warn(&format!("{}: only {hard} is allowed here", step()));
                sys::set_rlimit(limit.resource, limit.soft.min(hard), hard).context(step)?;
            }
            other => other.context(step)?,
        }
    }
    Ok(())
}

/// Ids, then capabilities: the order keeps the right to do the next step until it is done.
fn become_user(process: &Process, shim: &Shim) -> Result<(), Error> {
    let wanted = process.capabilities.as_ref();
    if let Some(wanted) = wanted {
        shrink_bounding_set(wanted.bounding)?;
        sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).context(|| "keep capabilities".into())?;
    }
    let groups: Vec<Gid> = process.groups.iter().map(|&g| Gid::from_raw(g)).collect();
    match setgroups(&groups) {
        // In a user namespace without a subgid range setgroups is denied; harmless if no more is asked than the
        // primary group, which is listed too by some callers.
        Err(Errno::EPERM) if process.groups.iter().all(|&group| group == process.gid) => {}
        other => other.context(|| format!("set {} additional groups", groups.len()))?,
    }
    let gid = Gid::from_raw(process.gid);
    setresgid(gid, gid, gid).context(|| format!("become group {}", process.gid))?;
    let uid = Uid::from_raw(process.uid);
    setresuid(uid, uid, uid).context(|| format!("become user {}", process.uid))?;
    if let Some(wanted) = wanted {
        set_capabilities(wanted, shim)?;
    }
    if process.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).context(|| "set no_new_privs".into())?;
    }
    Ok(())
}

fn shrink_bounding_set(keep: u64) -> Result<(), Error> {
    // Ends at the first capability the kernel doesn't know.
    for n in (0..64).take_while(|&n| sys::is_in_bounding_set(n).is_ok()) {
        if keep & (1 << n) == 0 && sys::is_in_bounding_set(n).unwrap_or(false) {
            sys::prctl(libc::PR_CAPBSET_DROP, u64::from(n), 0)
                .context(|| format!("drop capability {n}"))?;
        }
    }
    Ok(())
}

fn set_capabilities(wanted: &Capabilities, shim: &Shim) -> Result<(), Error> {
    let have = sys::permitted_capabilities().context(|| "read capabilities".into())?;
    let missing = (wanted.permitted | wanted.effective | wanted.inheritable) & !have;
    if missing != 0 {
        shim.warn(&format!(
            "capabilities {missing:#x} are not there to be given"
        ));
    }
    let permitted = wanted.permitted & have;
    let inheritable = wanted.inheritable & have;
    // Inheritable beyond permitted needs CAP_SETPCAP, which may be among what goes: so raise
    // inheritable first, with permitted still whole.
    sys::set_capabilities(have, have, inheritable).context(|| "set capabilities".into())?;
    sys::prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
        0,
    )
    .context(|| "clear ambient capabilities".into())?;
    let ambient = wanted.ambient & permitted & inheritable;
    let lost = wanted.ambient & !ambient;
    if lost != 0 {
        shim.warn(&format!(
            "ambient capabilities {lost:#x} are not given: they are not permitted and inheritable"
        ));
    }
    for n in (0..64).filter(|n| ambient & (1 << n) != 0) {
        sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, n)
            .context(|| format!("raise ambient capability {n}"))?;
    }
    sys::set_capabilities(wanted.effective & permitted, permitted, inheritable)
        .context(|| "set capabilities".into())
}

/// The spec's environment, with HOME from the container's passwd file where it is missing.
fn environment(process: &Process) -> Result<Vec<CString>, Error> {
    let mut env = process.env.clone();
    if !env
        .iter()
        .any(|e| e.starts_with("HOME=") && e.len() > "HOME=".len())
    {
        env.retain(|e| !e.starts_with("HOME="));
        let passwd = read_passwd();
        env.push(format!(
            "HOME={}",
            home_of(process.uid, &passwd).unwrap_or("/")
        ));
    }
    c_strings(&env)
}

/// The container's /etc/passwd; empty where there is none to be read. Whoever made the image may have put a pipe or an
/// endless device there: such a thing must not hold up the start.
fn read_passwd() -> String {
    const MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/etc/passwd");
    if let Ok(file) = opened
        && file.metadata().is_ok_and(|meta| meta.is_file())
        && file.take(MAX).read_to_end(&mut bytes).is_err()
    {
        bytes.clear();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A user's home directory according to a passwd file.
fn home_of(uid: u32, passwd: &str) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let matches = fields.get(2)?.parse() == Ok(uid);
        fields
            .get(5)
            .copied()
            .filter(|home| matches && !home.is_empty())
    })
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, Error> {
    strings
        .iter()
        .map(|s| {
            CString::new(s.as_str())
                .map_err(|_| Error::plain("an argument or variable has a NUL in it"))
        })
        .collect()
}

/// The program's path, looked up as execvp does, as the user and in the working directory.
fn find_program(process: &Process) -> Result<CString, Error> {
    let name = process
        .args
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Error::plain("process.args is empty"))?;
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    let found = candidates(name, path).into_iter().find(|candidate| {
        let runnable = is_executable_file(candidate);
        denied |= !runnable && candidate.exists();
        runnable
    });
    match found {
        Some(found) => CString::new(found.as_os_str().as_bytes())
            .map_err(|_| Error::plain("a path has a NUL in it")),
        None if denied => Err(Error::plain(format!("exec: {name:?}: permission denied"))),
        None if name.contains('/') => Err(Error::plain(format!(
            "exec: {name:?}: stat {name}: no such file or directory"
        ))),
        None => Err(Error::plain(format!(
            "exec: {name:?}: executable file not found in $PATH"
        ))),
    }
}

fn candidates(name: &str, path: &str) -> Vec<PathBuf> {
    if name.contains('/') {
        return vec![PathBuf::from(name)];
    }
    path.split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .collect()
}

fn is_executable_file(path: &Path) -> bool {
    let plain = std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    plain && nix::unistd::access(OsStr::new(path), nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_comes_from_the_passwd_line_of_that_uid() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nweb:x:101:101::/srv/web:/bin/false\nnohome:x:5:5:::\n";
        assert_eq!(home_of(101, passwd), Some("/srv/web"));
        assert_eq!(home_of(7, passwd), None);
        assert_eq!(home_of(5, passwd), None);
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_up_in_path() {
        assert_eq!(candidates("./run", "/bin"), [PathBuf::from("./run")]);
        assert_eq!(
            candidates("ls", "/bin::/usr/bin"),
            [
                PathBuf::from("/bin/ls"),
                PathBuf::from("./ls"),
                PathBuf::from("/usr/bin/ls")
            ]
        );
    }

    #[test]
    fn a_missing_program_says_how_it_was_looked_for() {
        let process = Process {
            args: vec!["no-such-thing".into()],
            ..Process::default()
        };
        assert_eq!(
            find_program(&process).unwrap_err().to_string(),
            "exec: \"no-such-thing\": executable file not found in $PATH"
        );
        let process = Process {
            args: vec!["/no/such".into()],
            ..Process::default()
        };
        assert_eq!(
            find_program(&process).unwrap_err().to_string(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        let process = Process {
            args: vec!["/etc/passwd".into()],
            ..Process::default()
        };
        assert_eq!(
            find_program(&process).unwrap_err().to_string(),
            "exec: \"/etc/passwd\": permission denied"
        );
    }
}
