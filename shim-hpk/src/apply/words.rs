//! What Apptainer says, for the error that a person reads.

use std::{
    fs::File,
    io::{Read, Seek},
    os::fd::OwnedFd,
};

/// All that is in the file, without the colours and labels of its lines.
pub fn words_of(said: &OwnedFd) -> String {
    let mut text = String::new();
    let read = said.try_clone().map(File::from).and_then(|mut file| {
        file.rewind()?;
        file.read_to_string(&mut text)
    });
    if let Err(e) = read {
        return format!("(its messages can't be read: {e})");
    }
    without_noise(&text)
}

fn without_noise(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let mut plain = String::new();
        // Escape sequences (ECMA-48, section 5.4): ESC [ … up to a letter.
        for (index, part) in line.split("\u{1b}[").enumerate() {
            let end = part.find(|sign: char| sign.is_ascii_alphabetic());
            plain.push_str(match (index, end) {
                (0, _) => part,
                (_, Some(end)) => &part[end + 1..],
                (_, None) => "",
            });
        }
        let labels = ["FATAL:", "ERROR:", "WARNING:", "INFO:"];
        let unlabelled = labels.iter().find_map(|label| plain.strip_prefix(label));
        unlabelled.unwrap_or(&plain).trim().to_owned()
    });
    let words: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    words.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apptainers_words_are_told_without_colours_and_labels() {
        let said = "\u{1b}[31mFATAL:   \u{1b}[0mcontainer creation failed: mount /x: denied\n\n";
        assert_eq!(
            without_noise(said),
            "container creation failed: mount /x: denied"
        );
        assert_eq!(without_noise("two\nlines\n"), "two\nlines");
    }
}
