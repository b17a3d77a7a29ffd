//! FIFOs, opened from both sides: so that neither side's coming and going (a restart of containerd)
//! ends or fails the process, and nothing is lost meanwhile.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    time::Duration,
};

/// How long a caller may take to open what it will read. One that opens only once the process is
/// through would wait for a writer that doesn't come any more.
const READER_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(1);

/// A process's end, and the shim's hold on the other one.
pub struct Fifo {
    pub end: File,
    pub hold: File,
}

/// Whether that is one.
pub fn is_fifo(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo())
}

/// To write to. Waits for a reader, but not for ever.
pub async fn open_output(path: &str) -> io::Result<Fifo> {
    let waited = tokio::time::timeout(READER_LIMIT, async {
        loop {
            match open(path, false) {
                // Nobody has it open for reading, or is about to.
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => tokio::time::sleep(POLL).await,
                other => return other,
            }
        }
    })
    .await;
    let early = waited.ok().transpose()?;
    let hold = open(path, true)?;
    Ok(Fifo {
        end: early.map_or_else(|| open(path, false), Ok)?,
        hold,
    })
}

/// To read from.
pub fn open_input(path: &str) -> io::Result<Fifo> {
    // With a reader there, opening for writing doesn't wait.
    let end = open(path, true)?;
    Ok(Fifo {
        end,
        hold: open(path, false)?,
    })
}

fn open(path: &str, read: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(read)
        .write(!read)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn fifo() -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo").to_str().unwrap().to_owned();
        nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        (directory, path)
    }

    #[tokio::test]
    async fn output_of_a_process_that_ends_at_once_reaches_a_reader_that_comes_late() {
        let (_directory, path) = fifo();
        let late = path.clone();
        let reader = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(100));
            let mut text = String::new();
            File::open(late).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        let mut fifo = open_output(&path).await.unwrap();
        fifo.end.write_all(b"hello").unwrap();
        drop(fifo);
        assert_eq!(reader.await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn readers_may_come_and_go_and_miss_nothing() {
        let (_directory, path) = fifo();
        let first = open(&path, true).unwrap();
        let mut fifo = open_output(&path).await.unwrap();
        drop(first);
        fifo.end.write_all(b"while nobody reads").unwrap();
        let mut second = open(&path, true).unwrap();
        let mut bytes = [0; 64];
        let n = second.read(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"while nobody reads");
    }
}
