//! Apptainer's lists of what a driver consists of.

use std::path::PathBuf;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// A library whose name begins so.
    Library(String),
    LibraryAt(PathBuf),
    /// To be looked up in PATH.
    Program(String),
    /// Any other, by its absolute path.
    File(PathBuf),
}

/// An entry a line; `#` begins a comment's line. What has `.so` in it is a library.
pub fn parse_list(text: &str) -> Vec<Listed> {
    let lines = text.lines().map(str::trim);
    let entries = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries
        .map(
            |entry| match (entry.starts_with('/'), entry.contains(".so")) {
                (true, true) => Listed::LibraryAt(entry.into()),
                (true, false) => Listed::File(entry.into()),
                (false, true) => Listed::Library(entry.to_owned()),
                (false, false) => Listed::Program(entry.to_owned()),
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_library_a_program_or_a_file() {
        let text = "# programs\nnvidia-smi\n\n  libcuda.so  \n/opt/driver/libx.so.1\n/usr/share/nvidia/nvoptix.bin\n";
        assert_eq!(
            parse_list(text),
            [
                Listed::Program("nvidia-smi".into()),
                Listed::Library("libcuda.so".into()),
                Listed::LibraryAt("/opt/driver/libx.so.1".into()),
                Listed::File("/usr/share/nvidia/nvoptix.bin".into()),
            ]
        );
    }
}
