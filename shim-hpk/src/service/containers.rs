//! Containers, and processes in them.

use std::{collections::HashMap, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use hpk_cgroup::{Cgroup, oom};
use hpk_pause::wire;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    apply::{
        channel::Channel,
        reaper::{Exit, ExitReceiver},
    },
    error::Error,
    life::Life,
    plan::{Inherited, hooks::Hooks},
    procfs::Membership,
    stdio::{Held, Stdio},
};

/// One container.
pub struct Container {
    pub bundle: PathBuf,
    pub init: Process,
    pub execs: HashMap<String, Process>,
    /// Once its process exists.
    pub membership: Option<Membership>,
    /// Nowhere until its process exists.
    pub cgroup: Arc<Cgroup>,
    pub paused: bool,
    /// For its execs too.
    pub seccomp: Option<wire::Seccomp>,
    pub inherited: Inherited,
    pub oom: Option<Watched>,
    /// For its start and its end; `None` if it has none.
    pub hooks: Option<Arc<Hooks>>,
}

/// A watch for a lack of memory, and who listens to it.
pub struct Watched {
    pub watch: Arc<oom::Watch>,
    pub task: JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A container's first process, or an exec.
pub struct Process {
    pub life: Life,
    pub stdio: Stdio,
    pub pid: i32,
    /// Set up, not let go yet.
    pub channel: Option<Channel>,
    /// An exec's program until its start.
    pub program: Option<wire::Process>,
    pub held: Option<Held>,
    /// Its user; of a container's own process only.
    pub uid: u32,
    end: watch::Sender<Option<Exit>>,
    stdin_closed: bool,
}

/// What to call a process in an error.
pub fn label(id: &str, exec_id: &str) -> String {
    if exec_id.is_empty() {
        format!("container {id}")
    } else {
        format!("exec {exec_id} in {id}")
    }
}

impl Container {
    /// A container being created.
    pub fn new(bundle: PathBuf, stdio: Stdio) -> Self {
        Self {
            bundle,
            init: Process::new(Life::Creating, stdio, None),
            execs: HashMap::new(),
            membership: None,
            cgroup: Arc::default(),
            paused: false,
            seccomp: None,
            inherited: Inherited::default(),
            oom: None,
            hooks: None,
        }
    }

    /// The container's own process, or an exec.
    pub fn process(&mut self, id: &str, exec_id: &str) -> Result<&mut Process, Error> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| Error::NotFound(label(id, exec_id)))
    }

    /// Adds an exec.
    pub fn add_exec(
        &mut self,
        id: &str,
        exec_id: &str,
        program: wire::Process,
        stdio: Stdio,
    ) -> Result<(), Error> {
        if !self.init.life.is_alive() {
            return Err(Error::Precondition(format!(
                "container {id} is not running"
            )));
        }
        if exec_id.is_empty() || self.execs.contains_key(exec_id) {
            return Err(Error::AlreadyExists(label(id, exec_id)));
        }
        self.execs.insert(
            exec_id.to_owned(),
            Process::new(Life::Created, stdio, Some(program)),
        );
        Ok(())
    }
}

impl Process {
    fn new(life: Life, stdio: Stdio, program: Option<wire::Process>) -> Self {
        Self {
            life,
            stdio,
            pid: 0,
            channel: None,
            program,
            held: None,
            uid: 0,
            end: watch::Sender::new(None),
            stdin_closed: false,
        }
    }

    /// The container's process is there, waiting.
    pub fn set_up(&mut self, pid: i32, channel: Channel, held: Held) {
        self.channel = Some(channel);
        self.set_up_exec(pid, held);
        self.life.created();
    }

    /// The exec's process is there.
    pub fn set_up_exec(&mut self, pid: i32, mut held: Held) {
        self.pid = pid;
        if self.stdin_closed {
            held.close_stdin();
        }
        self.held = Some(held);
    }

    /// The stdin that was left for the start.
    pub fn open_stdin(&mut self) -> Result<Option<OwnedFd>, Error> {
        let (stdio, uid) = (&self.stdio, self.uid);
        self.held
            .as_mut()
            .map_or(Ok(None), |held| held.open_stdin(stdio, uid))
    }

    /// It ended: true if that may be announced at once. Whoever waits is told either way.
    pub fn ended(&mut self, exit: Exit) -> bool {
        let announce = self.life.ended(exit);
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(exit);
            first
        });
        if let Some(held) = &mut self.held {
            held.process_ended();
        }
        announce
    }

    /// Will hold the end.
    pub fn end(&self) -> ExitReceiver {
        self.end.subscribe()
    }

    /// CloseIO, also before there is anything to close.
    pub fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(held) = &mut self.held {
            held.close_stdin();
        }
    }

    /// Whether Delete makes sense now.
    pub fn deletable(&self, what: &str) -> Result<(), Error> {
        match self.life {
            Life::Stopped(_) | Life::Created => Ok(()),
            Life::Creating => Err(Error::Precondition(format!(
                "{what} is still being created"
            ))),
            Life::Starting(_) | Life::Running => {
                Err(Error::Precondition(format!("{what} is running")))
            }
        }
    }
}
