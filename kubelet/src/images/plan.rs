//! Which images this node gives up, and which go from the store. Pure.
//! Source: pkg/kubelet/images/image_gc_manager.go; the store here is shared with the user's other nodes and clusters, whose
//! claims `hpk_images` knows.

use std::collections::BTreeSet;
use std::time::Duration;

use hpk_images::Stored;

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Percent of the store's file system in use, from which on images go; 100: never.
    pub high: u8,
    /// Percent down to which they go.
    pub low: u8,
    /// An image goes no sooner after its last use.
    pub min_age: Duration,
    /// Unused for so long it goes however much space there is; zero: never.
    pub max_age: Duration,
}

/// The store's file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    pub capacity: u64,
    pub available: u64,
}

impl Limits {
    /// Bytes to be freed now.
    pub fn wanted(&self, space: Space) -> u64 {
        let percent = |part: u8| u64::try_from(u128::from(space.capacity) * u128::from(part) / 100);
        let used = space.capacity.saturating_sub(space.available);
        let (Ok(high), Ok(low)) = (percent(self.high), percent(self.low)) else {
            return 0;
        };
        match self.high < 100 && space.capacity > 0 && used >= high {
            true => used.saturating_sub(low),
            false => 0,
        }
    }
}

/// What is mounted here and no pod of this node has used for `min_age`: (digest, time since) of all that is held.
pub fn idle<'a>(
    held: impl IntoIterator<Item = (&'a str, Duration)>,
    used_here: &BTreeSet<String>,
    min_age: Duration,
) -> Vec<String> {
    held.into_iter()
        .filter(|(digest, since)| *since >= min_age && !used_here.contains(*digest))
        .map(|(digest, _)| digest.to_owned())
        .collect()
}

/// What goes from the store, in this order. `stored`: all of it, oldest use first.
pub fn outdated<'a>(stored: &'a [Stored], limits: &Limits, wanted: u64) -> Vec<&'a Stored> {
    let mut freed = 0_u64;
    let free = stored.iter().filter(|image| !image.claimed);
    free.filter(|image| {
        let too_old = !limits.max_age.is_zero() && image.unused_for > limits.max_age;
        let needed = freed < wanted && image.unused_for >= limits.min_age;
        if too_old || needed {
            freed += image.size;
        }
        too_old || needed
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        high: 85,
        low: 80,
        min_age: Duration::from_secs(120),
        max_age: Duration::ZERO,
    };

    fn image(name: &str, size: u64, unused_for: u64, claimed: bool) -> Stored {
        Stored {
            digest: name.to_owned(),
            names: Vec::new(),
            size,
            unused_for: Duration::from_secs(unused_for),
            claimed,
        }
    }

    #[test]
    fn space_is_wanted_from_the_high_mark_on_and_down_to_the_low_one() {
        let space = |available| Space {
            capacity: 1000,
            available,
        };
        assert_eq!(LIMITS.wanted(space(151)), 0);
        assert_eq!(LIMITS.wanted(space(150)), 50);
        let never = Limits {
            high: 100,
            ..LIMITS
        };
        assert_eq!(never.wanted(space(0)), 0);
        assert_eq!(LIMITS.wanted(Space::default()), 0);
    }

    #[test]
    fn the_oldest_go_until_enough_is_free_and_what_is_claimed_or_fresh_stays() {
        let stored = [
            image("claimed", 100, 900, true),
            image("oldest", 10, 800, false),
            image("old", 10, 700, false),
            image("spare", 10, 600, false),
            image("fresh", 10, 60, false),
        ];
        let names = |wanted| -> Vec<String> {
            let gone = outdated(&stored, &LIMITS, wanted);
            gone.iter().map(|image| image.digest.clone()).collect()
        };
        assert_eq!(names(0), Vec::<String>::new());
        assert_eq!(names(15), ["oldest", "old"]);
        assert_eq!(names(1000), ["oldest", "old", "spare"]);
    }

    #[test]
    fn what_is_too_old_goes_without_need() {
        let limits = Limits {
            max_age: Duration::from_secs(750),
            ..LIMITS
        };
        let stored = [image("a", 1, 800, false), image("b", 1, 700, false)];
        assert_eq!(outdated(&stored, &limits, 0), [&stored[0]]);
    }

    #[test]
    fn a_mount_that_no_pod_uses_is_given_up_after_a_while() {
        let second = Duration::from_secs;
        let used = BTreeSet::from(["used".to_owned()]);
        let held = [
            ("used", second(900)),
            ("idle", second(900)),
            ("new", second(1)),
        ];
        assert_eq!(idle(held, &used, second(120)), ["idle"]);
    }
}
