//! Resizing in place: what is asked for is promised once it fits, then each running container is
//! given it, by its cgroup or by a restart, and at last the cgroup around them.

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::jiff::SignedDuration;

use super::{Plan, Step, View, roles};
use crate::pod::allocation::{self, Within};
use crate::spec::limits::Limits;

/// How often a resize that didn't fit is looked at again; other pods may have gone.
const RETRY: SignedDuration = SignedDuration::from_secs(3);

pub(super) fn plan(view: &View<'_>, plan: &mut Plan) {
    let held = view.record.resize.held.as_ref();
    match &view.resize {
        None if held.is_some() => plan.step(Step::DropResize),
        None => {}
        Some(Ok(())) => plan.step(Step::Allocate),
        Some(Err(verdict)) => {
            if held != Some(verdict) {
                plan.step(Step::HoldResize(verdict.clone()));
            }
            plan.wake_at(view.now + RETRY);
        }
    }
    if view.record.resize.under_way.is_none() || !view.sandbox_ready() {
        return;
    }
    let mut complete = true;
    for (container, _) in roles(view.spec) {
        complete &= resize(view, &container, plan);
    }
    if complete && plan.steps.is_empty() {
        match view.live.resizing.failure() {
            Some(failure) if failure.retry_at > view.now => plan.wake_at(failure.retry_at),
            _ => plan.step(Step::CompleteResize),
        }
    }
}

/// True when nothing of this container is left to be done.
fn resize(view: &View<'_>, container: &Container, plan: &mut Plan) -> bool {
    let record = view.record_of(container);
    let Some(current) = record
        .and_then(|record| record.current.as_ref())
        .filter(|current| current.exit.is_none())
    else {
        // Its next start takes what is promised then.
        return true;
    };
    let old = Within {
        own: current.resources.as_ref(),
        whole: current.whole.as_ref(),
    };
    let new = Within {
        own: container.resources.as_ref(),
        whole: view.spec.resources.as_ref(),
    };
    let limits = |it: Within<'_>| Limits::of_container(it.own, it.whole);
    if allocation::same(old.own, new.own) && limits(old) == limits(new) {
        return true;
    }
    let live = view.live.containers.get(&container.name);
    let busy = live.is_some_and(|live| live.starting || live.stopping.is_some());
    if !current.is_running() || busy {
        return false;
    }
    if allocation::needs_restart(container, old, new) {
        plan.step(Step::StopContainer {
            container: container.name.clone(),
            grace: view.spec.termination_grace_period_seconds.unwrap_or(30),
            message: Some(format!(
                "Container {} resize requires restart",
                container.name
            )),
        });
        return false;
    }
    match live.map(|live| &live.resizing) {
        Some(op) if !op.is_due(view.now) => {
            if let Some(failure) = op.failure() {
                plan.wake_at(failure.retry_at);
            }
        }
        _ => plan.step(Step::ResizeContainer {
            container: container.name.clone(),
        }),
    }
    false
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::pod::live::{Live, Op};
    use crate::pod::record::{Instance, PodRecord, SandboxRecord, Verdict};
    use crate::pod::state::State;

    fn pod(cpu: &str, policy: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [{
            "name": "c", "resources": {"requests": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]}]}}))
        .expect("pod")
    }

    fn running(started_with: &Pod) -> PodRecord {
        let mut record = PodRecord::new(started_with, Timestamp::UNIX_EPOCH);
        record.state = State::Running;
        record.sandbox_attempt = 1;
        record.sandbox = Some(SandboxRecord::for_tests());
        let spec = started_with.spec.as_ref().expect("spec");
        record.container("c").current = Some(Instance {
            resources: spec.containers[0].resources.clone(),
            ..Instance::for_tests("x", None)
        });
        record
    }

    fn steps(
        pod: &Pod,
        record: &PodRecord,
        live: &Live,
        resize: Option<Result<(), Verdict>>,
    ) -> Vec<Step> {
        steps_at(pod, record, live, resize, Timestamp::UNIX_EPOCH)
    }

    fn steps_at(
        pod: &Pod,
        record: &PodRecord,
        live: &Live,
        resize: Option<Result<(), Verdict>>,
        now: Timestamp,
    ) -> Vec<Step> {
        let spec: &PodSpec = pod.spec.as_ref().expect("spec");
        let mut planned = Plan::default();
        plan(
            &View {
                spec,
                record,
                live,
                deletion: None,
                refused: None,
                resize,
                now,
            },
            &mut planned,
        );
        planned.steps
    }

    #[test]
    fn what_fits_is_promised_and_what_does_not_is_held_once() {
        let pod = pod("1", "NotRequired");
        let mut record = running(&pod);
        let live = Live::default();
        assert_eq!(steps(&pod, &record, &live, Some(Ok(()))), [Step::Allocate]);
        let verdict = Verdict {
            reason: "Deferred".to_owned(),
            message: "Node didn't have enough resource: cpu".to_owned(),
        };
        let hold = [Step::HoldResize(verdict.clone())];
        assert_eq!(
            steps(&pod, &record, &live, Some(Err(verdict.clone()))),
            hold
        );
        record.resize.held = Some(verdict.clone());
        assert_eq!(steps(&pod, &record, &live, Some(Err(verdict))), []);
        assert_eq!(steps(&pod, &record, &live, None), [Step::DropResize]);
    }

    #[test]
    fn a_running_container_is_resized_once_at_a_time() {
        let mut record = running(&pod("1", "NotRequired"));
        record.resize.under_way = Some(2);
        let mut live = Live::default();
        let pod = pod("2", "NotRequired");
        let resize = [Step::ResizeContainer {
            container: "c".to_owned(),
        }];
        assert_eq!(steps(&pod, &record, &live, None), resize);
        live.container("c").resizing = Op::Busy { delay: 0 };
        assert_eq!(steps(&pod, &record, &live, None), []);
    }

    #[test]
    fn a_policy_may_want_a_restart() {
        let mut record = running(&pod("1", "RestartContainer"));
        record.resize.under_way = Some(2);
        let pod = pod("2", "RestartContainer");
        let planned = steps(&pod, &record, &Live::default(), None);
        assert!(matches!(planned.as_slice(), [Step::StopContainer { .. }]));
    }

    #[test]
    fn a_container_without_limits_is_given_its_pods() {
        let whole = |memory: &str| {
            serde_json::from_value(json!({"limits": {"memory": memory}})).expect("resources")
        };
        let mut pod = pod("1", "NotRequired");
        let mut record = running(&pod);
        record.resize.under_way = Some(2);
        let set = |pod: &mut Pod, memory| {
            pod.spec.as_mut().expect("spec").resources = Some(whole(memory));
        };
        record.container("c").current.as_mut().expect("run").whole = Some(whole("1Gi"));
        set(&mut pod, "1024Mi");
        let live = Live::default();
        assert_eq!(steps(&pod, &record, &live, None), [Step::CompleteResize]);
        set(&mut pod, "2Gi");
        let resize = [Step::ResizeContainer {
            container: "c".to_owned(),
        }];
        assert_eq!(steps(&pod, &record, &live, None), resize);
        let limit =
            serde_json::from_value(json!({"requests": {"cpu": "1"}, "limits": {"memory": "64Mi"}}));
        let own: Option<k8s_openapi::api::core::v1::ResourceRequirements> = limit.ok();
        pod.spec.as_mut().expect("spec").containers[0].resources = own.clone();
        record
            .container("c")
            .current
            .as_mut()
            .expect("run")
            .resources = own;
        assert_eq!(steps(&pod, &record, &live, None), [Step::CompleteResize]);
    }

    #[test]
    fn it_is_complete_when_no_run_has_the_old_resources() {
        let pod = pod("1", "NotRequired");
        let mut record = running(&pod);
        record.resize.under_way = Some(2);
        let mut live = Live::default();
        assert_eq!(steps(&pod, &record, &live, None), [Step::CompleteResize]);
        live.resizing.fail(1, 30, "Error", "busy".to_owned());
        assert_eq!(steps_at(&pod, &record, &live, None, Timestamp::now()), []);
    }
}
