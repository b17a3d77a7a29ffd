//! What the node can't give at present, as pods' admission and the node's conditions take it.

/// Set by the eviction's looks and by the node's shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
    pub shutting_down: bool,
}
