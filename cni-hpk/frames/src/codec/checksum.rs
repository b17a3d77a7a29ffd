//! The Internet checksum (RFC 1071), as TCP and UDP use it.

/// A sum of 16-bit words not folded yet. It is kept in the machine's byte
/// order, which the arithmetic allows (RFC 1071, section 2 B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

/// Bytes summed in one turn of the loop: enough lanes for vector registers.
const BLOCK: usize = 32;

impl Sum {
    /// With these bytes. All pieces but the last must be of even length.
    pub fn with(self, bytes: &[u8]) -> Self {
        let mut lanes = [0_u64; BLOCK / 4];
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
                let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
                // No overflow short of 2^32 blocks.
                *lane = lane.wrapping_add(u64::from(word));
            }
        }
        let mut sum = lanes
            .iter()
            .fold(self.0, |sum, lane| sum.wrapping_add(*lane));
        let mut words = blocks.remainder().chunks_exact(2);
        for word in &mut words {
            sum = sum.wrapping_add(u64::from(u16::from_ne_bytes([word[0], word[1]])));
        }
        if let [last] = words.remainder() {
            sum = sum.wrapping_add(u64::from(u16::from_ne_bytes([*last, 0])));
        }
        Self(sum)
    }

    /// The ones' complement sum, as the bytes of a header hold it. All ones
    /// over something that contains its own checksum: it is right.
    pub fn fold(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Folded above.
        (sum as u16).to_ne_bytes()
    }

    /// The checksum to put into a header whose field was zero in the sum.
    pub fn finish(self) -> [u8; 2] {
        self.fold().map(|byte| !byte)
    }
}

/// As UDP sends it: zero would mean "none" (RFC 768).
pub fn not_zero(checksum: [u8; 2]) -> [u8; 2] {
    match checksum {
        [0, 0] => [0xff, 0xff],
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Word by word with the carry brought round at once, as RFC 1071's
    /// example in C does.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum: u32 = 0;
        for word in bytes.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([word[0], low]));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        u16::try_from(sum).unwrap().to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().with(&bytes).fold(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().with(&bytes).finish(), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn it_is_the_slow_ones_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::default().with(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn even_pieces_can_be_summed_apart(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..150_usize) {
            let (head, tail) = bytes.split_at((2 * at).min(bytes.len() & !1));
            prop_assert_eq!(Sum::default().with(head).with(tail).fold(), reference(&bytes));
        }
    }
}
