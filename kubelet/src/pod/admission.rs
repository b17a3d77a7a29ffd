//! Whether this node takes a pod. Pure: what can't be honoured is refused with a reason.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::record::Verdict;
use super::restart::{Role, init_role};
use super::sysctls;
use crate::quantity::Quantity;

/// What a pod asks for, by resource: its containers and sidecars in sum, or an init container with
/// the sidecars before it where that is more; what the pod as a whole asks for instead; its overhead.
/// Source: k8s.io/component-helpers/resource, PodRequests.
pub fn requests(spec: &PodSpec) -> BTreeMap<String, Quantity> {
    let mut sum = aggregate(spec, requested);
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    sum.extend(parse(whole));
    add(&mut sum, parse(spec.overhead.as_ref()));
    sum
}

fn aggregate(
    spec: &PodSpec,
    of: impl Fn(&Container) -> BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    for container in &spec.containers {
        add(&mut sum, of(container));
    }
    let mut sidecars: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut most: BTreeMap<String, Quantity> = BTreeMap::new();
    for container in spec.init_containers.iter().flatten() {
        let mut wanted = of(container);
        if init_role(container) == Role::Sidecar {
            add(&mut sidecars, wanted);
            wanted = sidecars.clone();
        } else {
            add(&mut wanted, sidecars.clone());
        }
        for (name, quantity) in wanted {
            let known = most.entry(name).or_default();
            *known = (*known).max(quantity);
        }
    }
    add(&mut sum, sidecars);
    for (name, quantity) in most {
        let known = sum.entry(name).or_default();
        *known = (*known).max(quantity);
    }
    sum
}

/// What the pod is limited to: in sum, where each container has a limit; as a whole, where it says so.
pub fn limits(spec: &PodSpec) -> BTreeMap<String, Quantity> {
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        parse(resources.and_then(|r| r.limits.as_ref()))
    };
    let is_unlimited = |name: &str| spec.containers.iter().any(|c| !of(c).contains_key(name));
    let mut sum = aggregate(spec, of);
    sum.retain(|name, _| !is_unlimited(name));
    let whole = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    sum.extend(parse(whole));
    sum
}

fn requested(container: &Container) -> BTreeMap<String, Quantity> {
    let resources = container.resources.as_ref();
    parse(resources.and_then(|r| r.requests.as_ref()))
}

fn parse(map: Option<&BTreeMap<String, ApiQuantity>>) -> BTreeMap<String, Quantity> {
    map.into_iter()
        .flatten()
        .filter_map(|(name, quantity)| Some((name.clone(), Quantity::parse(&quantity.0).ok()?)))
        .collect()
}

fn add(sum: &mut BTreeMap<String, Quantity>, more: BTreeMap<String, Quantity>) {
    for (name, quantity) in more {
        let known = sum.entry(name).or_default();
        *known = *known + quantity;
    }
}

/// Why the node refuses the pod; none if it takes it. `used`: what its other pods ask for;
/// `allowed_sysctls`: those beyond the safe ones.
pub fn refuse(
    pod: &Pod,
    allowed_sysctls: &[String],
    allocatable: &BTreeMap<String, Quantity>,
    used: &BTreeMap<String, Quantity>,
    pods: usize,
) -> Option<Verdict> {
    let spec = pod.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some(Verdict {
            reason: "PodOSNotSupported".to_owned(),
            message: "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"
                .to_owned(),
        });
    }
    if let Some(why) = sysctls::forbidden(spec, allowed_sysctls) {
        return Some(Verdict {
            reason: "SysctlForbidden".to_owned(),
            message: format!("Pod was rejected: forbidden sysctl: {why}"),
        });
    }
    let status = pod.status.as_ref();
    let by_claim = status.and_then(|status| status.extended_resource_claim_status.as_ref());
    let what = by_claim.map(|_| "an extended resource by a ResourceClaim".to_owned());
    if let Some(what) = what.or_else(|| unsupported(spec)) {
        return Some(Verdict {
            reason: "UnsupportedByHPK".to_owned(),
            message: format!("Pod was rejected: {what} is not supported by hpk-kubelet"),
        });
    }
    let limit = allocatable
        .get("pods")
        .map_or(110, |quantity| quantity.value());
    let pods = i128::try_from(pods).unwrap_or(i128::MAX);
    if pods + 1 > limit {
        return Some(out_of("pods", 1, pods, limit));
    }
    for (name, wanted) in requests(spec) {
        let Some(have) = allocatable.get(&name) else {
            continue;
        };
        let taken = used.get(&name).copied().unwrap_or_default();
        if wanted > Quantity::default() && taken + wanted > *have {
            let [wanted, taken, have] = [wanted, taken, *have].map(|q| number(&name, q));
            return Some(out_of(&name, wanted, taken, have));
        }
    }
    None
}

/// Why a running pod can't have these resources: never on this node (Infeasible), or not now
/// (Deferred). Source: pkg/kubelet/allocation, v1.PodReasonInfeasible.
pub fn refuse_resize(
    desired: &PodSpec,
    allocatable: &BTreeMap<String, Quantity>,
    used: &BTreeMap<String, Quantity>,
) -> Option<Verdict> {
    let wanted = requests(desired);
    let resizable = ["cpu", "memory"]
        .into_iter()
        .filter_map(|name| Some((name, *wanted.get(name)?, *allocatable.get(name)?)));
    let mut deferred = None;
    for (name, wanted, have) in resizable {
        let taken = used.get(name).copied().unwrap_or_default();
        let [requested, used, capacity] = [wanted, taken, have].map(|q| number(name, q));
        if wanted > have {
            return Some(Verdict {
                reason: "Infeasible".to_owned(),
                message: format!(
                    "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
                ),
            });
        }
        if taken + wanted > have {
            deferred.get_or_insert(Verdict {
                reason: "Deferred".to_owned(),
                message: format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                ),
            });
        }
    }
    deferred
}

/// As messages give it: CPU in thousandths, others in whole units.
fn number(resource: &str, quantity: Quantity) -> i128 {
    match resource {
        "cpu" => quantity.milli(),
        _ => quantity.value(),
    }
}

fn out_of(resource: &str, requested: i128, used: i128, capacity: i128) -> Verdict {
    Verdict {
        reason: format!("OutOf{resource}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
}

/// The first part of the spec that can't be honoured here.
fn unsupported(spec: &PodSpec) -> Option<String> {
    if spec.host_users == Some(false) {
        return Some("hostUsers: false".to_owned());
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceClaims".to_owned());
    }
    let init = spec.init_containers.iter().flatten();
    for container in init.chain(&spec.containers) {
        let rules = container.restart_policy_rules.iter().flatten();
        if let Some(rule) = rules.into_iter().find(|rule| rule.action != "Restart") {
            return Some(format!(
                "action {} of restartPolicyRules (container {})",
                rule.action, container.name
            ));
        }
        if container.volume_devices.iter().flatten().next().is_some() {
            return Some(format!("volumeDevices (container {})", container.name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("pod")
    }

    fn two_cpus() -> BTreeMap<String, Quantity> {
        BTreeMap::from([("cpu".to_owned(), Quantity::from_value(2))])
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_with_the_numbers() {
        let asks = json!({"requests": {"cpu": "1500m"}});
        let pod = pod(json!({"containers": [{"name": "c", "resources": asks}]}));
        assert_eq!(refuse(&pod, &[], &two_cpus(), &BTreeMap::new(), 0), None);
        let used = BTreeMap::from([("cpu".to_owned(), Quantity::from_milli(600))]);
        let verdict = refuse(&pod, &[], &two_cpus(), &used, 1).expect("refused");
        assert_eq!(verdict.reason, "OutOfcpu");
        assert!(
            verdict
                .message
                .ends_with("requested: 1500, used: 600, capacity: 2000")
        );
    }

    #[test]
    fn sidecars_count_beside_the_containers_and_beside_later_init_containers() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": asks("100m")});
        let init = json!({"name": "i", "resources": asks("500m")});
        let app = json!({"name": "a", "resources": asks("200m")});
        let cpu = |init: serde_json::Value, app: &serde_json::Value| {
            let pod = pod(json!({"initContainers": init, "containers": [app]}));
            requests(&pod.spec.expect("spec"))["cpu"].milli()
        };
        assert_eq!(cpu(json!([sidecar, init]), &app), 600);
        assert_eq!(cpu(json!([init, sidecar]), &app), 500);
        assert_eq!(cpu(json!([sidecar]), &app), 300);
    }

    #[test]
    fn a_resize_beyond_the_node_is_infeasible_and_beyond_what_is_free_is_deferred() {
        let wants = |cpu: &str| -> PodSpec {
            serde_json::from_value(json!({"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
            .expect("spec")
        };
        let used = BTreeMap::from([("cpu".to_owned(), Quantity::from_milli(600))]);
        let reason = |cpu| refuse_resize(&wants(cpu), &two_cpus(), &used).map(|v| v.reason);
        assert_eq!(reason("1400m"), None);
        assert_eq!(reason("1401m").as_deref(), Some("Deferred"));
        assert_eq!(reason("2001m").as_deref(), Some("Infeasible"));
    }

    #[test]
    fn another_systems_pod_and_a_sysctl_of_the_node_are_refused_by_their_own_reasons() {
        let reason = |spec| {
            let verdict = refuse(&pod(spec), &[], &BTreeMap::new(), &BTreeMap::new(), 0);
            verdict.expect("refused").reason
        };
        let windows = json!({"containers": [], "os": {"name": "windows"}});
        assert_eq!(reason(windows), "PodOSNotSupported");
        let context = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
        let unsafe_one = json!({"containers": [], "securityContext": context});
        assert_eq!(reason(unsafe_one), "SysctlForbidden");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let devices = json!([{"name": "v", "devicePath": "/dev/v"}]);
        let pod = pod(json!({"containers": [{"name": "c", "volumeDevices": devices}]}));
        let verdict = refuse(&pod, &[], &BTreeMap::new(), &BTreeMap::new(), 0).expect("refused");
        assert!(verdict.message.contains("volumeDevices (container c)"));
    }

    #[test]
    fn a_rule_that_would_restart_all_containers_is_refused_by_name() {
        let exit = json!({"operator": "In", "values": [1]});
        let rule = json!([{"action": "RestartAllContainers", "exitCodes": exit}]);
        let container = json!({"name": "c", "restartPolicyRules": rule});
        let pod = pod(json!({"containers": [container]}));
        let verdict = refuse(&pod, &[], &BTreeMap::new(), &BTreeMap::new(), 0).expect("refused");
        assert_eq!(verdict.reason, "UnsupportedByHPK");
        assert!(
            verdict
                .message
                .contains("action RestartAllContainers of restartPolicyRules (container c)")
        );
    }
}
