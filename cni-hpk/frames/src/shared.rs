//! The table of peers, shared with the threads that move frames.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::codec::table::Table;

#[derive(Debug)]
pub struct SharedTable {
    table: RwLock<Arc<Table>>,
    version: AtomicU64,
}

impl SharedTable {
    pub fn new(table: Table) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::new(Arc::new(table)),
            version: AtomicU64::new(0),
        })
    }

    pub fn set(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        self.version.fetch_add(1, Ordering::Release);
    }

    pub fn get(&self) -> Arc<Table> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.clone()
    }
}

/// A thread's view of it, which costs one load while nothing changes.
#[derive(Debug)]
pub struct View {
    shared: Arc<SharedTable>,
    table: Arc<Table>,
    version: u64,
}

impl View {
    pub fn new(shared: Arc<SharedTable>) -> Self {
        // The version first: a table that changes in between is read again.
        let version = shared.version.load(Ordering::Acquire);
        let table = shared.get();
        Self {
            shared,
            table,
            version,
        }
    }

    pub fn table(&mut self) -> &Table {
        let version = self.shared.version.load(Ordering::Acquire);
        if version != self.version {
            self.table = self.shared.get();
            self.version = version;
        }
        &self.table
    }
}
