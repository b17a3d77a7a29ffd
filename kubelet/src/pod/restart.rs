//! Whether and when a container that ended runs again. Pure.
//! Source: Kubernetes, "Pod Lifecycle, Container restarts"; pkg/kubelet/kuberuntime.

use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, PodSpec, PodStatus,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::record::ContainerRecord;

/// First wait, seconds; doubled by each restart.
const INITIAL: u32 = 10;
/// Longest wait, seconds.
const MAX: u32 = 300;
/// A restart this long after the one before starts again from the first wait.
const FORGET: SignedDuration = SignedDuration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Always,
    OnFailure,
    Never,
}

/// Which of the pod's lists a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Init,
    /// An init container with restartPolicy Always: runs beside the others.
    Sidecar,
    App,
    /// Added to a pod that runs, for a look at it.
    Ephemeral,
}

impl Role {
    /// The field of the pod's spec that lists containers of this role.
    pub fn field(self) -> &'static str {
        match self {
            Role::Init | Role::Sidecar => "initContainers",
            Role::App => "containers",
            Role::Ephemeral => "ephemeralContainers",
        }
    }

    /// The container's status among the pod's.
    pub fn status<'a>(self, pod: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
        let list = match self {
            Role::Init | Role::Sidecar => &pod.init_container_statuses,
            Role::App => &pod.container_statuses,
            Role::Ephemeral => &pod.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|status| status.name == name)
    }
}

impl Policy {
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("OnFailure") => Policy::OnFailure,
            Some("Never") => Policy::Never,
            _ => Policy::Always,
        }
    }

    pub fn of_pod(spec: &PodSpec) -> Self {
        Self::parse(spec.restart_policy.as_deref())
    }
}

/// The role of an init container.
pub fn init_role(container: &Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") {
        Role::Sidecar
    } else {
        Role::Init
    }
}

/// What holds for one container after it ended so: the first of its rules that names the exit code, else its own
/// restartPolicy, else what its role makes of the pod's. Source: KEP-5307.
pub fn policy(
    spec: &PodSpec,
    container: &Container,
    role: Role,
    record: Option<&ContainerRecord>,
) -> Policy {
    let code = record.and_then(ContainerRecord::exit).map(|exit| exit.code);
    let rules = container.restart_policy_rules.iter().flatten();
    // Restart is the only action that admission lets through.
    if code.is_some_and(|code| rules.into_iter().any(|rule| names(rule, code))) {
        return Policy::Always;
    }
    match role {
        Role::Sidecar => Policy::Always,
        Role::Ephemeral => Policy::Never,
        Role::Init => match container.restart_policy.as_deref() {
            Some(own) => Policy::parse(Some(own)),
            // An init container that succeeded has done its work.
            None => match Policy::of_pod(spec) {
                Policy::Always | Policy::OnFailure => Policy::OnFailure,
                Policy::Never => Policy::Never,
            },
        },
        Role::App => match container.restart_policy.as_deref() {
            Some(own) => Policy::parse(Some(own)),
            None => Policy::of_pod(spec),
        },
    }
}

fn names(rule: &ContainerRestartRule, code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// What to do about a container that doesn't run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Start,
    /// Back-off: not before this time.
    Wait {
        until: Timestamp,
        seconds: u32,
    },
    /// It stays ended.
    Done,
}

/// Decides from how the last run ended.
pub fn next(record: &ContainerRecord, policy: Policy, now: Timestamp) -> Next {
    let Some(exit) = record.exit() else {
        return Next::Start;
    };
    let again = match policy {
        Policy::Always => true,
        Policy::OnFailure => exit.code != 0,
        Policy::Never => false,
    };
    if !again {
        return Next::Done;
    }
    if record.backoff_seconds == 0 || is_forgotten(record, now) {
        return Next::Start;
    }
    let wait = SignedDuration::from_secs(i64::from(record.backoff_seconds));
    let until = exit.at.checked_add(wait).unwrap_or(now);
    if now >= until {
        Next::Start
    } else {
        Next::Wait {
            until,
            seconds: record.backoff_seconds,
        }
    }
}

/// Called at each restart: the wait before the one after it.
pub fn raise_backoff(record: &mut ContainerRecord, now: Timestamp) {
    record.backoff_seconds = if record.backoff_seconds == 0 || is_forgotten(record, now) {
        INITIAL
    } else {
        (record.backoff_seconds * 2).min(MAX)
    };
    record.backoff_set = Some(now);
}

fn is_forgotten(record: &ContainerRecord, now: Timestamp) -> bool {
    record
        .backoff_set
        .is_some_and(|set| now.duration_since(set) > FORGET)
}

#[cfg(test)]
mod tests {
    use super::super::record::Instance;
    use super::*;

    fn ended(code: i32, at: i64) -> ContainerRecord {
        let mut instance = Instance::for_tests("x", Some(code));
        instance.exit.as_mut().expect("ended").at = second(at);
        ContainerRecord {
            current: Some(instance),
            ..ContainerRecord::default()
        }
    }

    fn second(at: i64) -> Timestamp {
        Timestamp::from_second(at).expect("in range")
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_second_waits() {
        let mut record = ended(1, 100);
        assert_eq!(next(&record, Policy::Always, second(100)), Next::Start);
        raise_backoff(&mut record, second(100));
        let wait = Next::Wait {
            until: second(110),
            seconds: 10,
        };
        assert_eq!(next(&record, Policy::Always, second(101)), wait);
        assert_eq!(next(&record, Policy::Always, second(110)), Next::Start);
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let mut record = ended(1, 0);
        let mut waits = Vec::new();
        for _ in 0..7 {
            raise_backoff(&mut record, second(1));
            waits.push(record.backoff_seconds);
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut record = ended(1, 1000);
        record.backoff_seconds = 300;
        record.backoff_set = Some(second(100));
        assert_eq!(next(&record, Policy::Always, second(1000)), Next::Start);
        raise_backoff(&mut record, second(1000));
        assert_eq!(record.backoff_seconds, 10);
    }

    #[test]
    fn a_rule_that_names_the_exit_code_restarts_a_container_that_never_would_be() {
        let rules = serde_json::json!([
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}},
            {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1, 42]}}]);
        let container =
            serde_json::json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules});
        let container: Container = serde_json::from_value(container).expect("a container");
        let spec = PodSpec::default();
        let after = |code| policy(&spec, &container, Role::App, Some(&ended(code, 1)));
        assert_eq!(
            [42, 7, 1, 0].map(after),
            [Policy::Always, Policy::Always, Policy::Never, Policy::Never]
        );
        assert_eq!(policy(&spec, &container, Role::App, None), Policy::Never);
    }

    #[test]
    fn success_ends_a_container_unless_it_always_runs() {
        assert_eq!(next(&ended(0, 1), Policy::OnFailure, second(1)), Next::Done);
        assert_eq!(next(&ended(1, 1), Policy::Never, second(1)), Next::Done);
        assert_eq!(next(&ended(0, 1), Policy::Always, second(1)), Next::Start);
    }
}
