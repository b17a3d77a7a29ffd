use super::*;
use crate::pod::record::{Instance, SandboxRecord};
use serde_json::json;

struct Scene {
    pod: Pod,
    record: PodRecord,
    live: Live,
}

fn second(at: i64) -> Timestamp {
    Timestamp::from_second(at).expect("in range")
}

impl Scene {
    fn new(spec: serde_json::Value, state: State) -> Self {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns1", "uid": "u1"}, "spec": spec}))
        .expect("pod");
        let mut record = PodRecord::new(&pod, second(0));
        record.state = state;
        record.sandbox_attempt = 1;
        record.sandbox = Some(SandboxRecord::for_tests());
        Self {
            pod,
            record,
            live: Live::default(),
        }
    }

    fn ran(&mut self, name: &str, exit: Option<i32>) {
        self.record.container(name).current = Some(Instance::for_tests("x", exit));
        let live = self.live.container(name);
        live.started = true;
        live.ready = true;
    }

    fn status(&self) -> PodStatus {
        compute(&Inputs {
            pod: &self.pod,
            spec: self.pod.spec.as_ref().expect("spec"),
            record: &self.record,
            live: &self.live,
            host_ips: &["10.0.0.1".to_owned()],
            now: second(3),
        })
    }
}

/// The reason for which the pod's only container waits.
fn waits_for(status: &PodStatus) -> &str {
    let containers = status.container_statuses.as_ref().expect("statuses");
    let state = containers[0].state.as_ref().expect("a state");
    let waiting = state.waiting.as_ref().expect("waiting");
    waiting.reason.as_deref().expect("a reason")
}

fn condition(status: &PodStatus, kind: &str) -> String {
    let all = status.conditions.as_ref().expect("conditions");
    let found = all.iter().find(|c| c.type_ == kind).expect(kind);
    found.status.clone()
}

#[test]
fn a_running_pod_is_ready_and_has_its_address() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}), State::Running);
    scene.ran("c", None);
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready"), "True");
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    let container = &status.container_statuses.expect("statuses")[0];
    assert_eq!(container.container_id.as_deref(), Some("hpk://x"));
}

#[test]
fn a_sidecar_that_is_not_ready_keeps_the_pod_from_being_so() {
    let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec, State::Running);
    scene.ran("s", None);
    scene.ran("c", None);
    assert_eq!(condition(&scene.status(), "Ready"), "True");
    scene.live.container("s").ready = false;
    assert_eq!(condition(&scene.status(), "ContainersReady"), "False");
    assert_eq!(condition(&scene.status(), "Ready"), "False");
}

#[test]
fn an_ephemeral_container_is_told_of_and_counts_for_nothing() {
    let spec = json!({"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]});
    let mut scene = Scene::new(spec, State::Running);
    scene.ran("c", None);
    scene.ran("e", Some(3));
    let status = scene.status();
    assert_eq!(condition(&status, "Ready"), "True");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let debuggers = status.ephemeral_container_statuses.expect("statuses");
    assert_eq!(terminated(&debuggers[0]), Some(3));
}

#[test]
fn how_another_says_that_it_ended_stays() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}), State::Finishing);
    scene.ran("c", None);
    scene.record.over = Some(Phase::Failed);
    scene.pod.status = serde_json::from_value(json!({"reason": "NodeLost"})).expect("status");
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("NodeLost"));
}

#[test]
fn a_job_that_succeeded_says_so() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec, State::Finishing);
    scene.ran("c", Some(0));
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(condition(&status, "Ready"), "False");
    assert_eq!(condition(&status, "Initialized"), "True");
}

#[test]
fn a_failed_container_fails_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec, State::Finishing);
    scene.ran("c", Some(3));
    assert_eq!(scene.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn a_crash_loop_is_running_but_not_ready_and_shows_the_last_exit() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}), State::Running);
    scene.ran("c", Some(1));
    let record = scene.record.container("c");
    record.backoff_seconds = 10;
    record.backoff_set = Some(second(1));
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready"), "False");
    assert_eq!(waits_for(&status), "CrashLoopBackOff");
    let container = &status.container_statuses.expect("statuses")[0];
    let last = container
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref());
    assert_eq!(last.map(|l| l.exit_code), Some(1));
}

#[test]
fn a_pod_is_pending_while_it_initializes() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec, State::Initializing);
    scene.ran("i", None);
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&status, "Initialized"), "False");
    assert_eq!(waits_for(&status), "PodInitializing");
    scene.record.containers.clear();
    let init = scene.status().init_container_statuses.expect("statuses");
    let waiting = init[0].state.as_ref().and_then(|s| s.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    assert_eq!(reason, Some("PodInitializing"));
}

#[test]
fn a_rejected_pod_has_failed_and_says_why() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}), State::Rejected);
    scene.record.verdict = Some(crate::pod::record::Verdict {
        reason: "OutOfcpu".to_owned(),
        message: "no".to_owned(),
    });
    let status = scene.status();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}), State::Running);
    scene.ran("c", None);
    let first = scene.status();
    scene.pod.status = Some(first.clone());
    assert_eq!(scene.status().conditions, first.conditions);
}
