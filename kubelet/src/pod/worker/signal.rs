//! What a worker may hear.

use std::sync::Arc;

use hpk_shim_client::ExitStatus;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::images;
use crate::pod::container;
use crate::pod::record::Order;
use crate::pod::sandbox;
use crate::probes;
use crate::volumes::{MountError, Mounted};

/// How a container ended.
#[derive(Debug)]
pub struct End {
    pub status: ExitStatus,
    /// A process of it was killed for want of memory.
    pub starved: bool,
}

/// News for a worker: from the API server, or of work that it has started.
#[derive(Debug)]
pub enum Signal {
    /// The pod as the API server has it now.
    Spec(Arc<Pod>),
    /// The API server has it no more.
    Gone,
    /// Its manifest has gone: its containers get their grace.
    Withdrawn,
    /// The node can't keep it.
    End(Order),
    Mounted(Box<Result<Mounted, MountError>>),
    SandboxMade(Box<Result<sandbox::Created, sandbox::Error>>),
    /// The sandbox ended by itself.
    SandboxEnded {
        id: String,
    },
    SandboxRemoved(Box<Result<(), sandbox::Error>>),
    Pulled {
        container: String,
        image: Box<Result<images::Ready, images::Error>>,
    },
    Started {
        container: String,
        id: String,
        outcome: Box<Result<u32, container::Error>>,
    },
    /// The postStart hook is over.
    HookDone {
        container: String,
        id: String,
        succeeded: bool,
    },
    /// A container ended; nothing if nobody knows how.
    Ended {
        container: String,
        id: String,
        end: Option<End>,
    },
    Probe(probes::News),
    /// A running container has been given these resources, and the pod's where it has none, or not.
    Resized {
        container: String,
        id: String,
        resources: Box<ResourceRequirements>,
        whole: Box<Option<ResourceRequirements>>,
        outcome: Box<Result<(), super::resize::Error>>,
    },
    /// The pod's files are gone.
    Cleared(Result<(), std::io::Error>),
    /// The volumes of a pod that is over have been removed, or not.
    Emptied(Result<(), std::io::Error>),
    /// The API object was deleted, or was gone already.
    Deleted(Result<Existence, Box<kube::Error>>),
}

/// Whether the API server still had the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    Deleted,
    WasGone,
}

impl From<probes::News> for Signal {
    fn from(news: probes::News) -> Self {
        Signal::Probe(news)
    }
}
