//! Whether this node takes a pod. Pure: what can't be honoured is refused with a reason.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::record::Verdict;
use crate::quantity::Quantity;

/// What a pod asks for, by resource: the sum of its containers, or the largest init container.
pub fn requests(spec: &PodSpec) -> BTreeMap<String, Quantity> {
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    let of = |container: &Container| -> BTreeMap<String, Quantity> {
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        requests
            .into_iter()
            .flatten()
            .filter_map(|(name, quantity)| Some((name.clone(), Quantity::parse(&quantity.0).ok()?)))
            .collect()
    };
    for container in &spec.containers {
        for (name, quantity) in of(container) {
            let known = sum.entry(name).or_default();
            *known = *known + quantity;
        }
    }
    for container in spec.init_containers.iter().flatten() {
        for (name, quantity) in of(container) {
            let known = sum.entry(name).or_default();
            *known = (*known).max(quantity);
        }
    }
    sum
}

/// Why the node refuses the pod; none if it takes it. `used`: what its other pods ask for.
pub fn refuse(
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
    used: &BTreeMap<String, Quantity>,
    pods: usize,
) -> Option<Verdict> {
    let spec = pod.spec.as_ref()?;
    if let Some(what) = unsupported(spec) {
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
            let number = |quantity: Quantity| match name.as_str() {
                "cpu" => quantity.milli(),
                _ => quantity.value(),
            };
            return Some(out_of(&name, number(wanted), number(taken), number(*have)));
        }
    }
    None
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
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Some("an operating system other than linux".to_owned());
    }
    if spec.host_users == Some(false) {
        return Some("hostUsers: false".to_owned());
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceClaims".to_owned());
    }
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|c| !c.is_empty()) {
        return Some(format!("runtimeClassName {class:?}"));
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        return Some("setHostnameAsFQDN".to_owned());
    }
    let profile = spec
        .security_context
        .as_ref()
        .and_then(|c| c.seccomp_profile.as_ref());
    if profile.is_some_and(|profile| profile.type_ == "Localhost") {
        return Some("a seccomp profile of the node".to_owned());
    }
    let init = spec.init_containers.iter().flatten();
    for container in init.chain(&spec.containers) {
        if container
            .restart_policy_rules
            .iter()
            .flatten()
            .next()
            .is_some()
        {
            return Some(format!("restartPolicyRules (container {})", container.name));
        }
        let context = container.security_context.as_ref();
        let profile = context.and_then(|c| c.seccomp_profile.as_ref());
        if profile.is_some_and(|profile| profile.type_ == "Localhost") {
            let name = &container.name;
            return Some(format!("a seccomp profile of the node (container {name})"));
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
        assert_eq!(refuse(&pod, &two_cpus(), &BTreeMap::new(), 0), None);
        let used = BTreeMap::from([("cpu".to_owned(), Quantity::from_milli(600))]);
        let verdict = refuse(&pod, &two_cpus(), &used, 1).expect("refused");
        assert_eq!(verdict.reason, "OutOfcpu");
        assert!(
            verdict
                .message
                .ends_with("requested: 1500, used: 600, capacity: 2000")
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let devices = json!([{"name": "v", "devicePath": "/dev/v"}]);
        let pod = pod(json!({"containers": [{"name": "c", "volumeDevices": devices}]}));
        let verdict = refuse(&pod, &BTreeMap::new(), &BTreeMap::new(), 0).expect("refused");
        assert!(verdict.message.contains("volumeDevices (container c)"));
    }
}
