use super::*;
use crate::lines::Splitter;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn log(&self) -> PathBuf {
        self.path().join("0.log")
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        // The current file sorts first but was written last.
        if files.first() == Some(&self.log()) {
            files.rotate_left(1);
        }
        files
    }
}

fn sink(path: &Path, max_size: u64, max_files: usize) -> Sink {
    let mut sink = Sink::new(Config {
        path: path.to_owned(),
        max_size,
        max_files,
        partial_after: 0,
    });
    sink.open();
    sink
}

/// Texts of the entries of a file.
fn texts(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap().to_owned())
        .collect()
}

#[test]
fn entries_are_appended_to_what_is_there() {
    let folder = Folder::new();
    for round in ["one\n", "two\n"] {
        let mut sink = sink(&folder.log(), 0, 5);
        Splitter::new(Stream::Stdout).feed(round.as_bytes(), &mut sink);
        sink.finish();
    }
    assert_eq!(texts(&folder.log()), ["one", "two"]);
}

#[test]
fn a_torn_last_line_does_not_swallow_the_next() {
    let folder = Folder::new();
    fs::write(folder.log(), "2006-01-02T15:04:05Z stdout F torn").unwrap();
    let mut sink = sink(&folder.log(), 0, 5);
    Splitter::new(Stream::Stdout).feed(b"whole\n", &mut sink);
    sink.finish();
    assert_eq!(texts(&folder.log()), ["torn", "whole"]);
}

#[test]
fn rotation_keeps_every_line_in_order_and_every_file_within_the_limit() {
    let folder = Folder::new();
    let mut sink = sink(&folder.log(), 1000, 1000);
    let mut splitter = Splitter::new(Stream::Stdout);
    for number in 0..500 {
        splitter.feed(format!("line {number}\n").as_bytes(), &mut sink);
        if number % 7 == 0 {
            sink.flush();
        }
    }
    sink.finish();
    let files = folder.files();
    assert!(files.len() > 10, "{} files", files.len());
    for file in &files {
        assert!(file.metadata().unwrap().len() <= 1000);
    }
    let all: Vec<String> = files.iter().flat_map(|file| texts(file)).collect();
    let expected: Vec<String> = (0..500).map(|number| format!("line {number}")).collect();
    assert_eq!(all, expected);
}

#[test]
fn the_oldest_files_go() {
    let folder = Folder::new();
    let mut sink = sink(&folder.log(), 100, 3);
    let mut splitter = Splitter::new(Stream::Stdout);
    for number in 0..100 {
        splitter.feed(format!("line {number}\n").as_bytes(), &mut sink);
    }
    sink.finish();
    let files = folder.files();
    assert_eq!(files.len(), 3);
    // All within a second or two: their order is that of their names nevertheless.
    let kept: Vec<String> = files.iter().flat_map(|file| texts(file)).collect();
    let expected: Vec<String> = (100 - kept.len()..100)
        .map(|number| format!("line {number}"))
        .collect();
    assert_eq!(kept, expected);
}

#[test]
fn a_rotated_file_is_the_last_by_name_though_the_clock_was_set_back() {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let mut all = Vec::new();
    for now in [60, 60, 61, 59, 62] {
        all.push(rotated_name(Path::new("/d/0.log"), &all, at(now)));
    }
    let names = [
        "/d/0.log.19700101-000100",
        "/d/0.log.19700101-000100-000001",
        "/d/0.log.19700101-000101",
        "/d/0.log.19700101-000101-000001",
        "/d/0.log.19700101-000102",
    ];
    assert_eq!(all, names.map(PathBuf::from));
}

#[test]
fn a_long_line_is_not_cut_by_rotation() {
    let folder = Folder::new();
    let mut sink = sink(&folder.log(), 40_000, 5);
    let mut splitter = Splitter::new(Stream::Stdout);
    splitter.feed(&[b'a'; 30_000], &mut sink);
    splitter.feed(&[b'b'; 20_000], &mut sink);
    splitter.feed(b"\nnext\n", &mut sink);
    sink.finish();
    let files = folder.files();
    assert_eq!(files.len(), 2);
    assert_eq!(texts(&files[0]).concat().len(), 50_000);
    assert_eq!(texts(&files[1]), ["next"]);
}

#[test]
fn lines_that_could_not_be_written_are_counted_where_they_are_missing() {
    let folder = Folder::new();
    let gone = folder.path().join("gone");
    let path = gone.join("0.log");
    let mut sink = sink(&path, 0, 5);
    let mut splitter = Splitter::new(Stream::Stdout);
    splitter.feed(b"lost 1\nlost 2\n", &mut sink);
    sink.flush();
    splitter.feed(b"lost 3\n", &mut sink);
    sink.flush();
    assert!(!gone.exists());
    fs::create_dir(&gone).unwrap();
    splitter.feed(b"kept\n", &mut sink);
    sink.finish();
    let texts = texts(&path);
    assert!(texts[0].starts_with("hpk-logger: 3 lines ("), "{texts:?}");
    assert_eq!(texts[1..], ["kept"]);
}

#[test]
#[ignore = "needs root: mounts a small tmpfs; run in `unshare -m`"]
fn a_full_disk_leaves_whole_lines_and_a_count() {
    use nix::mount::{MsFlags, mount, umount};
    let folder = Folder::new();
    mount(
        Some("tmpfs"),
        folder.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    )
    .unwrap();
    let mut sink = sink(&folder.log(), 0, 5);
    let mut splitter = Splitter::new(Stream::Stdout);
    for number in 0..5000 {
        splitter.feed(format!("line {number}\n").as_bytes(), &mut sink);
        if number % 10 == 0 {
            sink.flush();
        }
    }
    sink.flush();
    let before = texts(&folder.log()).len();
    assert!((100..5000).contains(&before));
    File::options()
        .write(true)
        .open(folder.log())
        .unwrap()
        .set_len(0)
        .unwrap();
    sink.size = 0;
    splitter.feed(b"after\n", &mut sink);
    sink.finish();
    let after = texts(&folder.log());
    let marker = format!("hpk-logger: {} lines (", 5000 - before);
    assert!(after[0].starts_with(&marker), "{after:?}");
    assert_eq!(after[1], "after");
    drop(sink);
    umount(folder.path()).unwrap();
}
