use std::io::Write;

use super::*;

fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn line(tag: char, text: &str) -> String {
    format!("2016-10-06T00:17:01Z stdout {tag} {text}\n")
}

fn tail(text: &str, lines: u64) -> (&str, u64) {
    let (begin, found) = find_tail(&file(text), lines).unwrap();
    (&text[usize::try_from(begin).unwrap()..], found)
}

#[test]
fn the_last_lines_are_found_in_a_file_of_any_size() {
    for count in [1usize, 3, 2000, 5000] {
        let lines: Vec<String> = (0..count)
            .map(|number| line('F', &format!("{number} {}", "x".repeat(number % 90))))
            .collect();
        let text = lines.concat();
        for want in [0, 1, 2, 999, 4999, 10_000] {
            let (rest, found) = tail(&text, want as u64);
            let expected = want.min(count);
            assert_eq!(found, expected as u64);
            assert_eq!(rest, lines[count - expected..].concat());
        }
    }
}

#[test]
fn a_line_of_several_entries_counts_once() {
    let long = line('P', "a") + &line('P', "b") + &line('F', "c");
    let text = line('F', "first") + &long + &line('F', "last");
    assert_eq!(tail(&text, 1), (line('F', "last").as_str(), 1));
    assert_eq!(
        tail(&text, 2),
        ((long.clone() + &line('F', "last")).as_str(), 2)
    );
    assert_eq!(tail(&text, 3), (text.as_str(), 3));
    let unfinished = line('F', "first") + &line('P', "end");
    assert_eq!(tail(&unfinished, 1), (line('P', "end").as_str(), 1));
}

#[test]
fn a_line_longer_than_a_block_is_one() {
    let long = line('F', &"y".repeat(200_000));
    let text = line('F', "first") + &long;
    assert_eq!(tail(&text, 1), (long.as_str(), 1));
    assert_eq!(tail(&text, 2), (text.as_str(), 2));
}

#[test]
fn an_empty_file_has_no_lines_and_a_torn_one_has_its_rest() {
    assert_eq!(tail("", 5), ("", 0));
    let text = line('F', "whole") + "2016-10-06T00:17:01Z stdout F to";
    assert_eq!(tail(&text, 1), ("2016-10-06T00:17:01Z stdout F to", 1));
}

#[test]
fn successors_are_found_over_several_rotations() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    let rotate = |second: u32| {
        fs::rename(
            &log,
            folder.path().join(format!("0.log.20060102-15040{second}")),
        )
        .unwrap();
    };
    let after = |inode| {
        let files = successors(&log, inode).unwrap();
        let told = |file: &LogFile| (file.inode, file.after_gap);
        files.iter().map(told).collect::<Vec<_>>()
    };
    fs::write(&log, "a").unwrap();
    let a = LogFile::open(&log).unwrap();
    assert_eq!(after(a.inode), []);
    rotate(1);
    assert_eq!(after(a.inode), []);
    fs::write(&log, "b").unwrap();
    let b = LogFile::open(&log).unwrap();
    rotate(2);
    fs::write(&log, "c").unwrap();
    let c = LogFile::open(&log).unwrap();
    fs::write(folder.path().join("10.log"), "another").unwrap();
    assert_eq!(after(a.inode), [(b.inode, false), (c.inode, false)]);
    assert_eq!(open_all(&log).unwrap().len(), 3);
    fs::remove_file(folder.path().join("0.log.20060102-150401")).unwrap();
    assert_eq!(after(a.inode), [(b.inode, true), (c.inode, false)]);
}
