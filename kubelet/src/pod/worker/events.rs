//! What a worker tells users, in the stock kubelet's words.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::events::{Kind, Recorder};
use crate::images::Witness;
use crate::pod::restart::Role;
use crate::text;

impl Worker {
    pub(super) fn tell(&self, kind: Kind, reason: &str, message: String) {
        self.agent.recorder.pod(&self.pod, kind, reason, message);
    }

    pub(super) fn tell_of(&self, container: &str, kind: Kind, reason: &str, message: String) {
        let role = self.role(container);
        self.agent
            .recorder
            .container(&self.pod, container, role, kind, reason, message);
    }
}

/// Tells of a pull as it goes.
#[derive(Debug)]
pub(super) struct PullWitness {
    pub recorder: Recorder,
    pub pod: Arc<Pod>,
    /// None for a volume's.
    pub container: Option<(String, Role)>,
    pub image: String,
}

impl PullWitness {
    fn tell(&self, reason: &str, message: String) {
        let (pod, kind) = (&self.pod, Kind::Normal);
        match &self.container {
            Some((name, role)) => self
                .recorder
                .container(pod, name, *role, kind, reason, message),
            None => self.recorder.pod(pod, kind, reason, message),
        }
    }
}

impl Witness for PullWitness {
    fn pulling(&self) {
        self.tell("Pulling", format!("Pulling image {:?}", self.image));
    }

    fn present(&self) {
        let image = &self.image;
        let message = format!(
            "Container image {image:?} already present on machine and can be accessed by the pod"
        );
        self.tell("Pulled", message);
    }

    fn pulled(&self, took: Duration, size: u64) {
        let image = &self.image;
        let took = text::go_duration(took);
        self.tell(
            "Pulled",
            format!(
                "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size} bytes."
            ),
        );
    }
}
