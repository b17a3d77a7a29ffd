//! Names of sandboxes and containers: 64 random hexadecimal digits, as containerd has them.

use std::fs::File;
use std::io::{self, Read};

/// A new id from the kernel's random source.
pub fn fresh() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_long_and_differ() {
        let id = fresh().expect("random");
        assert_eq!(id.len(), 64);
        assert_ne!(id, fresh().expect("random"));
    }
}
