//! What the server asks of the rest of the kubelet: which pods and containers there are, and where
//! each container's shim, bundle and log is. The server does the rest by itself.

use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

use crate::usage::Usage;

/// The kubelet's knowledge of its pods, as the server needs it. Every answer is a snapshot; the
/// server asks again where it must follow a container's life (logs -f: about once a second).
#[async_trait]
pub trait PodAccess: Send + Sync + 'static {
    /// The pods bound to this node, with the newest status known.
    async fn pods(&self) -> Vec<Pod>;

    /// What node, pods and containers use now.
    async fn usage(&self) -> std::io::Result<Usage>;

    /// How probes have ended, in Prometheus' text format.
    async fn probes(&self) -> String;

    /// How the kubelet is configured.
    async fn configz(&self) -> serde_json::Value;

    /// One container (also an init or ephemeral one) of one pod.
    async fn container(&self, query: &ContainerQuery) -> Result<ContainerRef, AccessError>;

    /// One pod as a whole. `uid`: as in [`ContainerQuery`].
    async fn pod(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<PodRef, AccessError>;
}

/// Names a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerQuery {
    pub namespace: String,
    pub pod: String,
    /// When given, a pod of that name with another uid isn't the one that is meant.
    pub uid: Option<String>,
    pub container: String,
}

/// One container: its run (process) of now, and the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerRef {
    pub pod_uid: String,
    /// The last run that was created; it may have ended. `None`: none was yet.
    pub current: Option<Run>,
    /// The one before `current`.
    pub previous: Option<Run>,
    /// Why there is no running process (`ContainerCreating`, `CrashLoopBackOff`), if known.
    pub waiting: Option<String>,
    /// `stdin` of the container's spec.
    pub stdin: bool,
    /// `stdinOnce` of the container's spec: its stdin ends with the first caller's.
    pub stdin_once: bool,
    /// `tty` of the container's spec.
    pub tty: bool,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The id the shim knows it by.
    pub id: String,
    /// Holds config.json, whose `process` an exec takes environment, user and folder from.
    pub bundle: PathBuf,
    /// What [`hpk_shim_client::Shim::connect`] takes.
    pub shim_address: String,
    /// The file in CRI log format; rotated ones lie beside it.
    pub log: PathBuf,
    /// The FIFO that was given to the shim as stdin, for attach.
    pub stdin: Option<PathBuf>,
    /// Not ended, as far as is known.
    pub running: bool,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRef {
    pub uid: String,
    /// Pinned network namespace; `None` for a pod on the host network.
    pub netns: Option<PathBuf>,
    /// The sandbox is up.
    pub ready: bool,
}

/// A pod or container that isn't here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AccessError {
    #[error("pod {namespace}/{pod} is not on this node")]
    NoSuchPod { namespace: String, pod: String },
    #[error("container {container} not found in pod {pod}")]
    NoSuchContainer { pod: String, container: String },
    /// The kubelet is starting and doesn't know its pods yet.
    #[error("the kubelet is not ready")]
    NotReady,
}
