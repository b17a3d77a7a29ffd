//! What node, pods and containers use.
//!
//! - `collect`: asking the pods' shims
//! - `processes`: the node as a whole, from /proc
//! - `exposition`: as `/metrics/resource` gives it; `summary`: as `/stats/summary` does
//! - here: the figures

pub mod collect;
pub mod exposition;
pub mod processes;
pub mod summary;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// At one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    pub node: String,
    pub started_at: Timestamp,
    pub all: Figures,
    pub pods: Vec<PodUsage>,
    /// Pods whose shim gave no answer.
    pub unknown: usize,
    /// Bytes of the disk under the pods' files.
    pub disk: Disk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    pub capacity: u64,
    pub available: u64,
}

/// Of a node, pod or container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Bytes, page cache included where that is known.
    pub memory: u64,
    /// Bytes that can't be reclaimed.
    pub working_set: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub started_at: Option<Timestamp>,
    /// All containers and the sandbox.
    pub all: Figures,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ContainerUsage {
    pub name: String,
    pub started_at: Timestamp,
    pub all: Figures,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.working_set += other.working_set;
    }
}

impl From<hpk_shim_client::Stats> for Figures {
    fn from(stats: hpk_shim_client::Stats) -> Self {
        Self {
            cpu: stats.cpu,
            memory: stats.memory_bytes,
            working_set: stats.working_set_bytes,
        }
    }
}

#[cfg(test)]
impl Usage {
    /// One pod with one container, which has used 1.5 s and 4096 bytes; the node twice that.
    pub fn for_tests() -> Self {
        let second = |at| Timestamp::from_second(at).expect("in range");
        let figures = |n: u32| Figures {
            cpu: Duration::from_millis(1500) * n,
            memory: 8192 * u64::from(n),
            working_set: 4096 * u64::from(n),
        };
        Self {
            node: "n1".to_owned(),
            started_at: second(100),
            all: figures(2),
            pods: vec![PodUsage {
                namespace: "default".to_owned(),
                name: "web".to_owned(),
                uid: "u1".to_owned(),
                started_at: Some(second(150)),
                all: figures(1),
                containers: vec![ContainerUsage {
                    name: "app".to_owned(),
                    started_at: second(200),
                    all: figures(1),
                }],
            }],
            unknown: 0,
            disk: Disk::default(),
        }
    }
}
