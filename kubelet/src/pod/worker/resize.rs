//! Giving the pod other resources while it runs.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::Worker;
use super::signal::Signal;
use crate::events::Kind;
use crate::exec::Target;
use crate::pod::admission;
use crate::pod::allocation;
use crate::pod::group;
use crate::pod::live::Op;
use crate::pod::record::Verdict;
use crate::pod::state::State;
use crate::spec::limits::Limits;
use crate::text;

impl Worker {
    /// The pod is what has been promised to it, whatever is asked for by now.
    pub(super) fn apply_allocation(&mut self) {
        allocation::apply(&mut self.spec, &self.record.allocation);
        let mut pod = (*self.pod).clone();
        pod.spec = Some(self.spec.clone());
        self.pod = Arc::new(pod);
    }

    /// None if the pod has what it asks for.
    pub(super) fn resize_verdict(&self) -> Option<Result<(), Verdict>> {
        let runs = matches!(self.record.state, State::Initializing | State::Running);
        if !runs || allocation::is_met(&self.desired, &self.spec) {
            return None;
        }
        let (used, _) = self.agent.registry.used(&self.record.uid);
        let refused = admission::refuse_resize(&self.desired, &self.agent.facts.allocatable, &used);
        Some(refused.map_or(Ok(()), Err))
    }

    pub(super) fn allocate(&mut self) {
        let (old, new) = (Limits::of_pod(&self.spec), Limits::of_pod(&self.desired));
        // What the containers are given must fit into it; what they have does already.
        if let Err(error) = self.limit(old.or_looser(new)) {
            warn!(
                pod = self.record.name,
                error = text::chain(&error),
                "the pod's own limits stay for now"
            );
        }
        self.record.allocation = allocation::of(&self.desired);
        self.spec = self.desired.clone();
        self.apply_allocation();
        let generation = self.pod.metadata.generation.unwrap_or_default();
        self.record.resize.held = None;
        self.record.resize.under_way = Some(generation);
        self.live.resizing = Op::Idle;
        for live in self.live.containers.values_mut() {
            live.resizing = Op::Idle;
        }
        let message = message("Pod resize started", &self.spec, generation, None);
        self.tell(Kind::Normal, "ResizeStarted", message);
    }

    pub(super) fn hold_resize(&mut self, verdict: Verdict) {
        let generation = self.pod.metadata.generation.unwrap_or_default();
        let what = format!("Pod resize {}", verdict.reason);
        let message = message(&what, &self.desired, generation, Some(&verdict.message));
        self.tell(Kind::Warning, &format!("Resize{}", verdict.reason), message);
        self.record.resize.held = Some(verdict);
    }

    pub(super) fn complete_resize(&mut self) {
        let limits = Limits::of_pod(&self.spec);
        let fits = group::fits(&self.agent.cgroups, &self.record.uid, limits);
        if let Err(error) = fits.and_then(|()| self.limit(limits)) {
            let reason = text::chain(&error);
            self.tell_resize_error(&reason);
            return self.live.resizing.fail(1, 30, "Error", reason);
        }
        self.live.resizing = Op::Idle;
        if let Some(generation) = self.record.resize.under_way.take() {
            let message = message("Pod resize completed", &self.spec, generation, None);
            self.tell(Kind::Normal, "ResizeCompleted", message);
        }
    }

    /// Of the pod as a whole.
    fn limit(&self, limits: Limits) -> Result<(), group::Error> {
        group::ensure(&self.agent.cgroups, &self.record.uid, limits)
    }

    fn tell_resize_error(&self, reason: &str) {
        let generation = self.record.resize.under_way.unwrap_or_default();
        let message = message("Pod resize error", &self.spec, generation, Some(reason));
        self.tell(Kind::Warning, "ResizeError", message);
    }

    fn fail_resize(&mut self, container: &str, reason: String) {
        self.tell_resize_error(&reason);
        let resizing = &mut self.live.container(container).resizing;
        resizing.fail(1, 30, "Error", reason);
    }

    pub(super) fn resize_container(&mut self, name: &str) {
        let Some((container, _)) = self.find(name) else {
            return;
        };
        let Some(target) = self.target(name) else {
            let message = "the pod's shim can't be reached".to_owned();
            let resizing = &mut self.live.container(name).resizing;
            return resizing.fail(1, 30, "Error", message);
        };
        let whole = self.spec.resources.as_ref();
        let limits = Limits::of_container(container.resources.as_ref(), whole);
        let (cgroups, uid) = (&self.agent.cgroups, &self.record.uid);
        if let Err(error) = group::container_fits(cgroups, uid, (name, &target.id), limits) {
            return self.fail_resize(name, text::chain(&error));
        }
        self.live.container(name).resizing.begin();
        let resources = container.resources.clone().unwrap_or_default();
        let whole = Box::new(whole.cloned());
        let name = name.to_owned();
        self.spawn(async move {
            Signal::Resized {
                outcome: Box::new(update(&target, limits).await),
                container: name,
                id: target.id,
                resources: Box::new(resources),
                whole,
            }
        });
    }

    pub(super) fn hear_resized(
        &mut self,
        name: &str,
        id: &str,
        (resources, whole): (ResourceRequirements, Option<ResourceRequirements>),
        outcome: Result<(), Error>,
    ) {
        if !self.is_current(name, id) {
            return;
        }
        match outcome {
            Err(error) if !error.is_for_want_of_cgroups() => {
                return self.fail_resize(name, text::chain(&error));
            }
            // On a node without limits a resize changes what the scheduler counts, and no more.
            Err(_) => info!(
                pod = self.record.name,
                container = name,
                "resized, without limits"
            ),
            Ok(()) => {}
        }
        self.live.container(name).resizing = Op::Idle;
        if let Some(current) = &mut self.record.container(name).current {
            current.resources = Some(resources);
            current.whole = whole;
        }
    }
}

/// Why a running container keeps its old limits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't describe the container's limits")]
    Oci(#[from] oci_spec::OciSpecError),
    #[error("{}", text::of_shim(.0))]
    Shim(#[from] hpk_shim_client::Error),
}

impl Error {
    fn is_for_want_of_cgroups(&self) -> bool {
        matches!(self, Self::Shim(error) if error.is_unimplemented())
    }
}

async fn update(target: &Target, limits: Limits) -> Result<(), Error> {
    let limits = limits.for_update()?;
    let limits = serde_json::to_value(limits).map_err(oci_spec::OciSpecError::from)?;
    Ok(target.shim.update(&target.id, &limits).await?)
}

/// An event's text in the form of the stock kubelet: the resources, and why not, as JSON.
fn message(what: &str, spec: &PodSpec, generation: i64, error: Option<&str>) -> String {
    let list = |containers: &[Container]| -> Vec<Value> {
        let entry = |container: &Container| json!({"name": container.name, "resources": container.resources.clone().unwrap_or_default()});
        containers.iter().map(entry).collect()
    };
    let mut summary = serde_json::Map::new();
    if let Some(init) = spec
        .init_containers
        .as_deref()
        .filter(|init| !init.is_empty())
    {
        summary.insert("initContainers".to_owned(), list(init).into());
    }
    summary.insert("containers".to_owned(), list(&spec.containers).into());
    summary.insert("generation".to_owned(), generation.into());
    if let Some(error) = error {
        summary.insert("error".to_owned(), error.into());
    }
    format!("{what}: {}", Value::Object(summary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_was_asked_for_and_why_not() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "64"}}}]}))
        .expect("spec");
        let text = message("Pod resize Infeasible", &spec, 3, Some("too much"));
        let (what, json) = text.split_once(": ").expect("two parts");
        assert_eq!(what, "Pod resize Infeasible");
        let json: Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(json["containers"][0]["resources"]["requests"]["cpu"], "64");
        assert_eq!(
            (&json["generation"], &json["error"]),
            (&json!(3), &json!("too much"))
        );
    }
}
