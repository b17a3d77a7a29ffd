//! Devices that a node offers as extended resources, such as `nvidia.com/gpu`: each is one container's at a time.
//!
//! - `inventory`: what there is, from the command line (pure)
//! - `plan`: which of them a pod's containers get (pure)
//! - `nodes`: as an OCI spec has them
//! - here: who has what
//!
//! Expected flow: [`Devices::refuse`] while the pod is looked at, [`Devices::claim`] once it is taken, its answer into
//! the pod's record, [`Devices::nodes`] at each start of a container, [`Devices::release`] when no container can run
//! any more; after a start of the kubelet [`Devices::adopt`] for each record, before any pod is looked at.
//!
//! Guarantees: a device is never of two pods at once, nor of two containers of a pod that run at once; a container that
//! is restarted has those that it had. Source: pkg/kubelet/cm/devicemanager, whose sockets for plugins aren't here.

pub mod inventory;
pub mod nodes;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::PodSpec;
use oci_spec::runtime::LinuxDevice;

use inventory::Inventory;
use plan::{Assignment, Shortage};

/// The node's devices, and whose each is.
#[derive(Debug, Default)]
pub struct Devices {
    inventory: Inventory,
    /// By the pod's uid.
    held: Mutex<HashMap<String, Assignment>>,
}

impl Devices {
    pub fn new(inventory: Inventory) -> Self {
        Self {
            inventory,
            held: Mutex::default(),
        }
    }

    /// Why the pod can't have the devices that it asks for at present.
    pub fn refuse(&self, spec: &PodSpec) -> Option<Shortage> {
        let held = self.lock();
        plan::assign(spec, &self.inventory, &all_of(&held)).err()
    }

    /// Gives the pod its devices.
    pub fn claim(&self, uid: &str, spec: &PodSpec) -> Result<Assignment, Shortage> {
        let mut held = self.lock();
        let assignment = plan::assign(spec, &self.inventory, &all_of(&held))?;
        if !assignment.is_empty() {
            held.insert(uid.to_owned(), assignment.clone());
        }
        Ok(assignment)
    }

    /// The pod has these, by its record.
    pub fn adopt(&self, uid: &str, assignment: &Assignment) {
        if !assignment.is_empty() {
            self.lock().insert(uid.to_owned(), assignment.clone());
        }
    }

    pub fn release(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// The device nodes of a pod's container.
    pub fn nodes(&self, uid: &str, container: &str) -> Result<Vec<LinuxDevice>, nodes::Error> {
        let ids = match self.lock().get(uid) {
            Some(assignment) => assignment.of(container),
            None => Vec::new(),
        };
        let mut paths: BTreeSet<&PathBuf> = BTreeSet::new();
        for (resource, id) in &ids {
            let known = self.inventory.nodes(resource, id);
            paths.extend(known.ok_or_else(|| nodes::Error::Unknown {
                resource: resource.clone(),
                node: id.clone(),
            })?);
        }
        paths.into_iter().map(|path| nodes::look(path)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Assignment>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By resource, what anybody has.
fn all_of(held: &HashMap<String, Assignment>) -> BTreeMap<String, BTreeSet<PathBuf>> {
    let mut all: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for (resource, id) in held.values().flat_map(Assignment::all) {
        all.entry(resource.clone()).or_default().insert(id.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn two() -> Devices {
        let options = ["x.test/d=/dev/null", "x.test/d=/dev/zero,/dev/full"];
        let options: Vec<String> = options.map(str::to_owned).to_vec();
        Devices::new(Inventory::parse(&options).expect("an inventory"))
    }

    fn asks(count: u32) -> PodSpec {
        serde_json::from_value(json!({"containers": [
            {"name": "c", "resources": {"limits": {"x.test/d": count.to_string()}}}]}))
        .expect("a spec")
    }

    fn paths(devices: &Devices, uid: &str) -> Vec<String> {
        let nodes = devices.nodes(uid, "c").expect("nodes");
        nodes
            .iter()
            .map(|d| d.path().display().to_string())
            .collect()
    }

    #[test]
    fn no_two_pods_have_one_and_what_is_released_is_had_again() {
        let devices = two();
        devices.claim("a", &asks(1)).expect("a device");
        devices.claim("b", &asks(1)).expect("a device");
        assert_eq!(paths(&devices, "a"), ["/dev/null"]);
        assert_eq!(paths(&devices, "b"), ["/dev/full", "/dev/zero"]);
        let shortage = devices.claim("c", &asks(1)).expect_err("none is left");
        assert_eq!(devices.refuse(&asks(1)), Some(shortage));
        devices.release("a");
        devices.claim("c", &asks(1)).expect("a device");
        assert_eq!(paths(&devices, "c"), ["/dev/null"]);
    }

    #[test]
    fn what_a_record_tells_is_taken() {
        let before = two();
        before.claim("a", &asks(1)).expect("a device");
        let second = before.claim("b", &asks(1)).expect("a device");
        let after = two();
        after.adopt("b", &second);
        after.claim("c", &asks(1)).expect("a device");
        assert_eq!(paths(&after, "c"), ["/dev/null"]);
        assert_eq!(paths(&after, "b"), paths(&before, "b"));
        assert!(after.refuse(&asks(1)).is_some());
    }

    #[test]
    fn a_device_that_the_node_no_longer_offers_is_named() {
        let after = Devices::default();
        let assignment = two().claim("a", &asks(1)).expect("a device");
        after.adopt("a", &assignment);
        let error = after.nodes("a", "c").expect_err("unknown");
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
