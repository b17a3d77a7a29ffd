//! What a thread has moved and dropped, for others to read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::codec::cut::Malformed;
use crate::codec::table::Refusal;

/// Written by one thread, which therefore needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: usize) {
        let value = self.get().wrapping_add(amount as u64);
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To no peer's hardware address, as broadcasts.
    NoPeer,
    /// The TAP gave what can't be sent.
    Malformed,
    /// The socket refused it.
    NotSent,
    TooShort,
    ForeignVni,
    NotFromPeer,
    NotForUs,
    NotIp,
    NotOfLease,
    TooLong,
    /// The TAP refused it.
    NotWritten,
}

impl Reason {
    /// With their label values, in order.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::NoPeer, "no_peer"),
        (Self::Malformed, "malformed"),
        (Self::NotSent, "not_sent"),
        (Self::TooShort, "too_short"),
        (Self::ForeignVni, "foreign_vni"),
        (Self::NotFromPeer, "not_from_peer"),
        (Self::NotForUs, "not_for_us"),
        (Self::NotIp, "not_ip"),
        (Self::NotOfLease, "not_of_lease"),
        (Self::TooLong, "too_long"),
        (Self::NotWritten, "not_written"),
    ];
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooShort => Self::TooShort,
            Refusal::NotOurVni => Self::ForeignVni,
            Refusal::NotFromPeer => Self::NotFromPeer,
            Refusal::NotForUs => Self::NotForUs,
            Refusal::NotIp => Self::NotIp,
            Refusal::NotOfLease => Self::NotOfLease,
            Refusal::TooLong => Self::TooLong,
        }
    }
}

impl From<Malformed> for Reason {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Of one thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames on the wire.
    pub frames: Counter,
    /// Of these frames, bytes.
    pub bytes: Counter,
    /// Frames exchanged with the TAP: fewer, for they are longer.
    pub device: Counter,
    /// Frames on the wire that were cut from a longer one, or joined into one.
    pub segments: Counter,
    /// System calls that moved messages of the UDP socket.
    pub calls: Counter,
    dropped: [Counter; Reason::ALL.len()],
}

impl Counters {
    pub fn lost(&self, reason: impl Into<Reason>) {
        self.dropped[reason.into() as usize].add(1);
    }

    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        for (index, (reason, _)) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(index, reason as usize);
        }
        let counters = Counters::default();
        counters.lost(Refusal::NotIp);
        assert_eq!(counters.dropped(Reason::NotIp), 1);
        assert_eq!(counters.dropped(Reason::NotForUs), 0);
    }
}
