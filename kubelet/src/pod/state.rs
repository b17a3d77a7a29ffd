//! A pod's life on this node, as the table of its legal moves.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where a pod stands. One file in `phase/` says what is done in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Seen, not yet looked at.
    Pending,
    /// Volumes, network, sandbox are being made.
    Preparing,
    /// Init containers run, one after the other.
    Initializing,
    /// The pod's own containers run.
    Running,
    /// All is done, or the deadline is over: what still runs ends, the sandbox goes.
    Finishing,
    /// Succeeded or Failed; only files are left.
    Finished,
    /// The node refused it.
    Rejected,
    /// It was asked to go: containers end within their grace, the sandbox goes.
    Terminating,
    /// Nothing is left.
    Removed,
}

use State::{
    Finished, Finishing, Initializing, Pending, Preparing, Rejected, Removed, Running, Terminating,
};

/// Every move there is. What isn't here is a bug, and is refused.
const LEGAL: &[(State, State)] = &[
    (Pending, Preparing),
    (Pending, Rejected),
    (Pending, Terminating),
    // A pod that had ended before this kubelet knew of it.
    (Pending, Finished),
    (Preparing, Initializing),
    (Preparing, Finishing),
    (Preparing, Terminating),
    // The sandbox was lost: a new one.
    (Initializing, Preparing),
    (Initializing, Running),
    (Initializing, Finishing),
    (Initializing, Terminating),
    (Running, Preparing),
    (Running, Finishing),
    (Running, Terminating),
    (Finishing, Finished),
    (Finishing, Terminating),
    (Finished, Terminating),
    (Rejected, Terminating),
    (Terminating, Removed),
];

#[derive(Debug, Error, PartialEq, Eq)]
#[error("a pod can't go from {from:?} to {to:?}")]
pub struct IllegalMove {
    pub from: State,
    pub to: State,
}

impl State {
    /// The state after a move, if the table has it.
    pub fn advance(self, to: State) -> Result<State, IllegalMove> {
        if LEGAL.contains(&(self, to)) {
            Ok(to)
        } else {
            Err(IllegalMove { from: self, to })
        }
    }

    /// No container will run again.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Finishing | Finished | Rejected | Terminating | Removed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_but_the_last_can_be_left() {
        for state in [
            Pending,
            Preparing,
            Initializing,
            Running,
            Finishing,
            Finished,
            Rejected,
            Terminating,
        ] {
            assert!(LEGAL.iter().any(|(from, _)| *from == state), "{state:?}");
        }
        assert!(!LEGAL.iter().any(|(from, _)| *from == Removed));
    }

    #[test]
    fn every_state_may_be_told_to_go() {
        for (from, _) in LEGAL.iter().filter(|(from, _)| *from != Terminating) {
            assert_eq!(from.advance(Terminating), Ok(Terminating));
        }
    }

    #[test]
    fn a_finished_pod_never_runs_again() {
        assert!(Finished.advance(Running).is_err());
        assert!(Finished.advance(Preparing).is_err());
    }
}
