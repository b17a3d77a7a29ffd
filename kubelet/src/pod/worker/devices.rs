//! Devices that the pod asks for: whether it can have them, taking them, letting them go.

use super::Worker;
use crate::devices::plan::{self, Assignment};
use crate::events::Kind;
use crate::pod::record::Verdict;
use crate::spec::GPU;

impl Worker {
    /// Why the pod can't have its devices.
    pub(super) fn lacks_devices(&self) -> Option<Verdict> {
        let inventory = &self.agent.config.devices;
        if let Some(what) = plan::contradiction(&self.pod, GPU, inventory) {
            return Some(Verdict {
                reason: "UnsupportedByHPK".to_owned(),
                message: format!("Pod was rejected: {what} is not supported by hpk-kubelet"),
            });
        }
        let shortage = self.agent.devices.refuse(&self.spec)?;
        Some(Verdict {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Pod was rejected: {shortage}"),
        })
    }

    /// Takes the pod's devices, to be written down before anything is made. False if another pod was faster: the next
    /// look refuses this one.
    pub(super) fn take_devices(&mut self) -> bool {
        match self.agent.devices.claim(&self.record.uid, &self.spec) {
            Ok(assignment) => self.record.devices = assignment,
            Err(_) => return false,
        }
        let config = &self.agent.config;
        let is_known =
            |name: &str| config.devices.ids(name).is_some() || config.capacity.contains_key(name);
        for (container, resource) in plan::unknown(&self.spec, &is_known) {
            let message = format!("this node has no {resource}: container {container} gets none");
            self.tell_of(container, Kind::Warning, "NoSuchDevice", message);
        }
        true
    }

    /// Lets the devices go once no container can use them.
    pub(super) fn free_devices(&mut self) {
        if !self.record.devices.is_empty() && !self.record.holds_devices() {
            self.agent.devices.release(&self.record.uid);
            self.record.devices = Assignment::default();
        }
    }
}
