//! A command under a pseudo-terminal of ours, as a person at a keyboard has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::pty::{Winsize, openpty};

/// A running command and the terminal's keyboard and screen.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Terminal {
    /// Starts `command` in a session of its own whose controlling terminal is ours.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        let pair = openpty(Some(&size(rows, columns)), None).context("opening a terminal")?;
        let slave = File::from(pair.slave);
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        set_controlling_terminal(&mut command);
        let child = command.spawn().context("starting under a terminal")?;
        drop(command); // holds the slave side, and with it the end of file
        let keyboard = File::from(pair.master);
        let mut reader = keyboard.try_clone()?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            keyboard,
            screen,
            seen: String::new(),
        })
    }

    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.keyboard, "{line}").context("typing")
    }

    /// Changes the window's size; the foreground process group gets SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = size(rows, columns);
        set_window_size(self.keyboard.as_raw_fd(), &size).context("resizing the terminal")
    }

    /// Waits until the screen showed `text` after the last text that was waited for.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            if let Some(position) = self.seen.find(text) {
                self.seen.drain(..position + text.len());
                return Ok(());
            }
            match self
                .screen
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    bail!("the terminal never showed {text:?}, but {:?}", self.seen)
                }
            }
        }
    }

    /// Waits for the command's end and gives its exit code.
    pub fn exit_code(mut self, limit: Duration) -> Result<i32> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if Instant::now() > end {
                self.child.kill()?;
                self.child.wait()?;
                bail!(
                    "the command under the terminal did not end; it showed {:?}",
                    self.seen
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended already is only reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[allow(unsafe_code)]
fn set_controlling_terminal(command: &mut Command) {
    // SAFETY: between fork and exec only setsid and ioctl are called, both async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[allow(unsafe_code)]
fn set_window_size(fd: i32, size: &Winsize) -> std::io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one Winsize, which outlives the call.
    if unsafe { nix::libc::ioctl(fd, nix::libc::TIOCSWINSZ, size) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
