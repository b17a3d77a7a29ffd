use super::*;
use crate::pod::record::{Instance, SandboxRecord};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

struct Scene {
    pod: Pod,
    record: PodRecord,
    live: Live,
    deletion: Option<Deletion>,
}

fn second(at: i64) -> Timestamp {
    Timestamp::from_second(at).expect("in range")
}

impl Scene {
    fn new(spec: serde_json::Value) -> Self {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns1", "uid": "u1"}, "spec": spec}))
        .expect("pod");
        let record = PodRecord::new(&pod, second(0));
        let mut live = Live::default();
        for (container, _) in roles(pod.spec.as_ref().expect("spec")) {
            let image = crate::images::Ready::for_tests();
            live.container(&container.name).image = crate::pod::live::Op::Done(image.into());
        }
        Self {
            pod,
            record,
            live,
            deletion: None,
        }
    }

    fn at(mut self, state: State) -> Self {
        self.record.state = state;
        self.record.sandbox_attempt = 1;
        self.live.volumes = crate::pod::live::Op::Done(Default::default());
        self.record.sandbox = Some(SandboxRecord::for_tests());
        self
    }

    fn ran(&mut self, name: &str, exit: Option<i32>) {
        self.record.container(name).current = Some(Instance::for_tests(name, exit));
    }

    fn plan(&self) -> Plan {
        plan(&View {
            spec: self.pod.spec.as_ref().expect("spec"),
            record: &self.record,
            live: &self.live,
            deletion: self.deletion,
            refused: None,
            resize: None,
            now: second(10),
        })
    }
}

fn start(container: &str) -> Step {
    Step::StartContainer {
        container: container.to_owned(),
    }
}

#[test]
fn volumes_and_sandbox_are_made_side_by_side() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]}));
    scene.record.state = State::Preparing;
    assert_eq!(
        scene.plan().steps,
        [Step::MountVolumes, Step::CreateSandbox]
    );
}

#[test]
fn init_containers_run_one_after_the_other() {
    let spec =
        json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Initializing);
    assert_eq!(scene.plan().steps, [start("i1")]);
    scene.ran("i1", None);
    assert!(scene.plan().steps.is_empty());
    scene.ran("i1", Some(0));
    assert_eq!(scene.plan().steps, [start("i2")]);
    scene.ran("i2", Some(0));
    assert_eq!(scene.plan().steps, [Step::Move(State::Running)]);
}

#[test]
fn an_ephemeral_container_starts_once_whenever_it_comes_and_holds_nothing_up() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}],
        "ephemeralContainers": [{"name": "e"}]});
    let mut scene = Scene::new(spec).at(State::Initializing);
    scene.ran("i", None);
    assert_eq!(scene.plan().steps, [start("e")]);
    let mut scene = scene.at(State::Running);
    scene.ran("c", None);
    assert_eq!(scene.plan().steps, [start("e")]);
    scene.ran("e", Some(1));
    assert!(scene.plan().steps.is_empty());
    let mut scene = scene.at(State::Terminating);
    scene.deletion = Some(Deletion::Asked { grace: 5 });
    scene.ran("e", None);
    let stops =
        |step: &Step| matches!(step, Step::StopContainer { container, .. } if container == "e");
    assert!(scene.plan().steps.iter().any(stops));
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Initializing);
    scene.ran("i", Some(1));
    assert_eq!(scene.plan().steps, [Step::Move(State::Finishing)]);
}

#[test]
fn a_sidecar_must_have_started_before_the_next_container_does() {
    let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Initializing);
    scene.ran("s", None);
    assert!(scene.plan().steps.is_empty());
    scene.live.container("s").started = true;
    assert_eq!(scene.plan().steps, [Step::Move(State::Running)]);
}

#[test]
fn a_crash_loop_waits_and_says_until_when() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]})).at(State::Running);
    scene.ran("c", Some(1));
    let record = scene.record.container("c");
    record.backoff_seconds = 20;
    record.backoff_set = Some(second(0));
    let plan = scene.plan();
    assert!(plan.steps.is_empty());
    assert_eq!(plan.wake, Some(second(22)));
}

#[test]
fn a_new_image_ends_the_running_container_and_starts_it_again_without_a_wait() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "new"}]});
    let mut scene = Scene::new(spec).at(State::Running);
    scene.ran("c", None);
    scene.live.container("c").image_changed = Some(second(10));
    let settling = scene.plan();
    assert!(settling.steps.is_empty());
    assert_eq!(settling.wake, Some(second(11)));
    scene.live.container("c").image_changed = Some(second(9));
    let replace = Step::ReplaceContainer {
        container: "c".to_owned(),
        grace: 30,
    };
    assert_eq!(scene.plan().steps, [replace]);
    let record = scene.record.container("c");
    record.current.as_mut().expect("a run").replaced = true;
    assert!(scene.plan().steps.is_empty());
    scene.ran("c", Some(0));
    assert_eq!(scene.plan().steps, [Step::Move(State::Finishing)]);
    let record = scene.record.container("c");
    record.current.as_mut().expect("a run").replaced = true;
    assert_eq!(scene.plan().steps, [start("c")]);
}

#[test]
fn a_new_image_does_not_wait_for_the_old_ones_back_off() {
    let spec = json!({"containers": [{"name": "c", "image": "new"}]});
    let mut scene = Scene::new(spec).at(State::Running);
    scene.ran("c", Some(1));
    let record = scene.record.container("c");
    record.backoff_seconds = 300;
    record.backoff_set = Some(second(0));
    assert_eq!(scene.plan().steps, [start("c")]);
}

#[test]
fn a_job_that_succeeded_finishes() {
    let spec = json!({"restartPolicy": "OnFailure", "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Running);
    scene.ran("c", Some(0));
    assert_eq!(scene.plan().steps, [Step::Move(State::Finishing)]);
}

#[test]
fn a_lost_sandbox_is_replaced_unless_nothing_may_run_again() {
    let mut again = Scene::new(json!({"containers": [{"name": "c"}]})).at(State::Running);
    again.record.sandbox = None;
    assert_eq!(again.plan().steps[0], Step::ReplaceSandbox);
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
    let mut never = Scene::new(spec).at(State::Running);
    never.ran("c", Some(137));
    never.record.sandbox = None;
    assert_eq!(never.plan().steps, [Step::Move(State::Finishing)]);
}

#[test]
fn deletion_stops_containers_then_the_sandbox_then_the_object() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]})).at(State::Terminating);
    scene.deletion = Some(Deletion::Asked { grace: 5 });
    scene.ran("c", None);
    let stop = Step::StopContainer {
        container: "c".to_owned(),
        grace: 5,
        message: None,
    };
    assert_eq!(scene.plan().steps, [stop]);
    scene.ran("c", Some(0));
    assert_eq!(scene.plan().steps, [Step::RemoveSandbox]);
    scene.record.sandbox = None;
    assert_eq!(scene.plan().steps, [Step::DeleteFromApi]);
    scene.deletion = Some(Deletion::Gone { grace: 5 });
    assert_eq!(scene.plan().steps, [Step::RemoveFiles]);
}

#[test]
fn sidecars_stop_after_the_others_in_reverse_order() {
    let spec = json!({"initContainers": [
        {"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Terminating);
    scene.deletion = Some(Deletion::Asked { grace: 5 });
    for name in ["s1", "s2", "c"] {
        scene.ran(name, None);
    }
    let stopped = |scene: &Scene| -> Vec<String> {
        let steps = scene.plan().steps.into_iter();
        steps
            .filter_map(|step| match step {
                Step::StopContainer { container, .. } => Some(container),
                _ => None,
            })
            .collect()
    };
    assert_eq!(stopped(&scene), ["c"]);
    scene.ran("c", Some(0));
    assert_eq!(stopped(&scene), ["s2"]);
    scene.ran("s2", Some(0));
    assert_eq!(stopped(&scene), ["s1"]);
}

#[test]
fn a_pod_that_another_says_is_over_ends() {
    let mut scene = Scene::new(json!({"containers": [{"name": "c"}]})).at(State::Running);
    scene.ran("c", None);
    let mut told = scene.pod.clone();
    told.status.get_or_insert_default().phase = Some("Failed".to_owned());
    scene.record.hear_of_end(&told);
    assert_eq!(scene.plan().steps, [Step::Move(State::Finishing)]);
    scene.record.state = State::Pending;
    assert_eq!(scene.plan().steps, [Step::Move(State::Finished)]);
}

#[test]
fn a_deadline_ends_the_pod_and_says_why() {
    let spec = json!({"activeDeadlineSeconds": 5, "containers": [{"name": "c"}]});
    let mut scene = Scene::new(spec).at(State::Running);
    scene.ran("c", None);
    let steps = scene.plan().steps;
    assert!(matches!(&steps[0], Step::Fail(verdict) if verdict.reason == "DeadlineExceeded"));
    assert_eq!(steps[1], Step::Move(State::Finishing));
}

#[test]
fn a_pod_that_is_over_gives_its_volumes_back_and_keeps_its_logs() {
    let mut scene = Scene::new(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    scene = scene.at(State::Finished);
    scene.ran("c", Some(0));
    scene.record.sandbox = None;
    assert_eq!(scene.plan().steps, [Step::RemoveVolumes]);
    scene.live.emptying.begin();
    assert_eq!(scene.plan().steps, []);
    // Its deletion waits for that.
    scene.record.state = State::Terminating;
    scene.deletion = Some(Deletion::Gone { grace: 0 });
    assert_eq!(scene.plan().steps, []);
    scene.live.emptying = crate::pod::live::Op::Done(());
    assert_eq!(scene.plan().steps, [Step::RemoveFiles]);
}
