//! Which devices a pod's containers get. Pure.
//!
//! Init containers first, in their order; what one that ends has had is used again by those after it, what a sidecar has
//! stays its own. Source: pkg/kubelet/cm/devicemanager, Allocate and devicesToAllocate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::inventory::{Inventory, is_extended};
use crate::pod::restart::{Role, init_role};
use crate::quantity::Quantity;

/// By container and resource, what identifies the devices. Containers without any are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment(BTreeMap<String, BTreeMap<String, BTreeSet<PathBuf>>>);

impl Assignment {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A container's, each with its resource.
    pub fn of(&self, container: &str) -> Vec<(String, PathBuf)> {
        let own = self.0.get(container).into_iter().flat_map(pairs);
        own.map(|(resource, id)| (resource.clone(), id.clone()))
            .collect()
    }

    /// Those of all containers; one that is used again comes again.
    pub fn all(&self) -> impl Iterator<Item = (&String, &PathBuf)> {
        self.0.values().flat_map(pairs)
    }
}

fn pairs(
    devices: &BTreeMap<String, BTreeSet<PathBuf>>,
) -> impl Iterator<Item = (&String, &PathBuf)> {
    devices
        .iter()
        .flat_map(|(resource, ids)| ids.iter().map(move |id| (resource, id)))
}

/// Fewer are left than a container asks for, in the stock kubelet's words.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error(
    "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}, which is unexpected"
)]
pub struct Shortage {
    resource: String,
    requested: usize,
    available: usize,
}

/// Gives each container what it asks for of what the node has and nobody holds.
pub fn assign(
    spec: &PodSpec,
    inventory: &Inventory,
    held: &BTreeMap<String, BTreeSet<PathBuf>>,
) -> Result<Assignment, Shortage> {
    let mut assignment = Assignment::default();
    let mut taken = held.clone();
    let mut reusable: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|container| (container, init_role(container) == Role::Init));
    let apps = spec.containers.iter().map(|container| (container, false));
    for (container, ends) in init.chain(apps) {
        for (resource, requested) in asked(container) {
            let Some(ids) = inventory.ids(&resource) else {
                continue;
            };
            let again = reusable.entry(resource.clone()).or_default();
            let taken = taken.entry(resource.clone()).or_default();
            let mut own: BTreeSet<PathBuf> = again.iter().take(requested).cloned().collect();
            let free: Vec<&PathBuf> = ids.filter(|id| !taken.contains(*id)).collect();
            let missing = requested - own.len();
            if free.len() < missing {
                return Err(Shortage {
                    resource,
                    requested: missing,
                    available: free.len(),
                });
            }
            own.extend(free.into_iter().take(missing).cloned());
            taken.extend(own.iter().cloned());
            match ends {
                true => again.extend(own.iter().cloned()),
                false => again.retain(|id| !own.contains(id)),
            }
            if !own.is_empty() {
                let of_container = assignment.0.entry(container.name.clone()).or_default();
                of_container.insert(resource, own);
            }
        }
    }
    Ok(assignment)
}

/// The extended resources that a container asks for. Limit and request are the same: they are not overcommitted.
fn asked(container: &Container) -> Vec<(String, usize)> {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let asked = limits.into_iter().flatten().filter_map(|(name, amount)| {
        let amount = Quantity::parse(&amount.0).ok()?.value();
        let count = usize::try_from(amount).ok().filter(|count| *count > 0)?;
        is_extended(name).then(|| (name.clone(), count))
    });
    asked.collect()
}

/// A container and an extended resource that it asks for and the node doesn't have. The stock kubelet takes such a pod:
/// its scheduler would not have sent it here, and some resources are not of nodes.
pub fn unknown<'a>(
    spec: &'a PodSpec,
    is_known: &'a dyn Fn(&str) -> bool,
) -> impl Iterator<Item = (&'a str, String)> {
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).flat_map(move |container| {
        let names = asked(container).into_iter().map(|(name, _)| name);
        let unknown = names.filter(move |name| !is_known(name));
        unknown.map(|name| (container.name.as_str(), name))
    })
}

/// A container that asks for devices of its own, in a pod that asks by `annotation` for all that there are.
pub fn contradiction(pod: &Pod, annotation: &str, inventory: &Inventory) -> Option<String> {
    let asked_for = pod.metadata.annotations.as_ref()?.get(annotation)?;
    if asked_for == "none" {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).find_map(|container| {
        let of_devices = |(name, _): &(String, usize)| inventory.ids(name).is_some();
        let (resource, _) = asked(container).into_iter().find(of_devices)?;
        Some(format!(
            "annotation {annotation}: {asked_for}, which gives all that there are, beside {resource} (container {})",
            container.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GPU: &str = "nvidia.com/gpu";

    fn inventory(count: usize) -> Inventory {
        let options = (0..count).map(|n| format!("{GPU}=/dev/nvidia{n}"));
        Inventory::parse(&options.collect::<Vec<_>>()).expect("an inventory")
    }

    fn container(name: &str, gpus: u32) -> Value {
        json!({"name": name, "resources": {"limits": {GPU: gpus.to_string()}}})
    }

    fn sidecar(name: &str, gpus: u32) -> Value {
        let mut container = container(name, gpus);
        container["restartPolicy"] = json!("Always");
        container
    }

    fn spec(init: &[Value], apps: &[Value]) -> PodSpec {
        serde_json::from_value(json!({"initContainers": init, "containers": apps})).expect("a spec")
    }

    /// A container's devices, by their numbers.
    fn numbers(assignment: &Assignment, container: &str) -> String {
        let of = |(_, id): &(String, PathBuf)| id.display().to_string().replace("/dev/nvidia", "");
        assignment.of(container).iter().map(of).collect()
    }

    fn assigned(spec: &PodSpec, count: usize) -> Assignment {
        assign(spec, &inventory(count), &BTreeMap::new()).expect("enough")
    }

    #[test]
    fn each_container_has_devices_of_its_own_and_who_asks_for_none_has_none() {
        let spec = spec(
            &[],
            &[container("a", 1), container("b", 2), json!({"name": "c"})],
        );
        let all = assigned(&spec, 4);
        assert_eq!(
            ["a", "b", "c"].map(|name| numbers(&all, name)),
            ["0", "12", ""]
        );
    }

    #[test]
    fn what_others_hold_is_not_given_and_a_shortage_tells_the_numbers() {
        let held = BTreeMap::from([(GPU.to_owned(), BTreeSet::from(["/dev/nvidia0".into()]))]);
        let asks = |count| spec(&[], &[container("a", count)]);
        let given = assign(&asks(1), &inventory(2), &held).expect("one is free");
        assert_eq!(numbers(&given, "a"), "1");
        let shortage = assign(&asks(2), &inventory(2), &held).expect_err("one is free");
        assert_eq!(
            shortage.to_string(),
            "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. \
             Requested: 2, Available: 1, which is unexpected"
        );
    }

    #[test]
    fn what_an_init_container_had_is_used_again_but_a_sidecars_is_not() {
        let ends = spec(
            &[container("i", 2)],
            &[container("a", 1), container("b", 1)],
        );
        let all = assigned(&ends, 2);
        assert_eq!(
            ["i", "a", "b"].map(|name| numbers(&all, name)),
            ["01", "0", "1"]
        );
        let stays = spec(&[container("i", 1), sidecar("s", 1)], &[container("a", 1)]);
        let all = assigned(&stays, 2);
        assert_eq!(
            ["i", "s", "a"].map(|name| numbers(&all, name)),
            ["0", "0", "1"]
        );
    }

    #[test]
    fn an_init_container_after_a_sidecar_does_not_take_the_sidecars() {
        let spec = spec(&[sidecar("s", 1), container("i", 1)], &[container("a", 1)]);
        let all = assigned(&spec, 2);
        assert_eq!(
            ["s", "i", "a"].map(|name| numbers(&all, name)),
            ["0", "1", "1"]
        );
    }

    #[test]
    fn a_resource_that_is_not_of_this_nodes_devices_is_somebody_elses_and_told() {
        let asks = json!({"name": "a", "resources": {"limits": {"x.test/y": "1", "cpu": "1"}}});
        let spec = spec(&[], &[asks]);
        assert!(assigned(&spec, 1).is_empty());
        let known = |name: &str| name == GPU;
        let unknown: Vec<_> = unknown(&spec, &known).collect();
        assert_eq!(unknown, [("a", "x.test/y".to_owned())]);
    }

    #[test]
    fn one_of_the_devices_and_all_of_them_is_a_contradiction() {
        let pod = |gpu: &str, count| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"annotations": {"all": gpu}},
                "spec": {"containers": [container("a", count)]}}))
            .expect("a pod")
        };
        let why = |gpu, count| contradiction(&pod(gpu, count), "all", &inventory(1));
        assert!(why("nv", 1).expect("contradicts").contains("(container a)"));
        assert_eq!(why("nv", 0), None);
        assert_eq!(why("none", 1), None);
    }
}
