use super::*;
use serde_json::json;

fn pod(container: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns1", "uid": "u1", "labels": {"app": "x"}},
        "spec": {"containers": [container], "nodeName": "n1", "serviceAccountName": "sa"}
    }))
    .expect("a pod")
}

fn planned(
    container: serde_json::Value,
    objects: &Objects,
) -> Result<Vec<(String, String)>, Error> {
    let pod = pod(container);
    let spec = pod.spec.clone().expect("spec");
    plan(&pod, &spec.containers[0], &[], objects, &Facts::default())
}

#[test]
fn a_variable_sees_those_before_it_and_not_those_after() {
    let env = planned(
        json!({"name": "c", "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(C)"},
            {"name": "C", "value": "3"}]}),
        &Objects::default(),
    )
    .expect("planned");
    assert_eq!(env[1], ("B".to_owned(), "1-$(C)".to_owned()));
}

#[test]
fn env_replaces_env_from_of_the_same_name() {
    let mut objects = Objects::default();
    let map = serde_json::from_value(json!({"data": {"A": "map", "B": "map"}})).expect("map");
    objects.config_maps.insert("m".to_owned(), map);
    let env = planned(
        json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
               "env": [{"name": "P_A", "value": "own"}]}),
        &objects,
    )
    .expect("planned");
    let by_name: BTreeMap<_, _> = env.into_iter().collect();
    assert_eq!(by_name["P_A"], "own");
    assert_eq!(by_name["P_B"], "map");
}

#[test]
fn a_missing_key_is_named_unless_optional() {
    let mut objects = Objects::default();
    objects
        .config_maps
        .insert("m".to_owned(), ConfigMap::default());
    let key = |optional: bool| {
        json!({"name": "c", "env": [{"name": "A", "valueFrom":
            {"configMapKeyRef": {"name": "m", "key": "k", "optional": optional}}}]})
    };
    let error = planned(key(false), &objects).expect_err("missing");
    assert_eq!(error.to_string(), "couldn't find key k in ConfigMap ns1/m");
    assert!(planned(key(true), &objects).expect("optional").is_empty());
}

#[test]
fn a_secret_is_read_as_text_and_never_replaced_by_nothing() {
    let mut objects = Objects::default();
    let secret = serde_json::from_value(json!({"data": {"k": "/w=="}})).expect("secret");
    objects.secrets.insert("s".to_owned(), secret);
    let error = planned(
        json!({"name": "c", "env": [{"name": "A", "valueFrom":
            {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        &objects,
    )
    .expect_err("not UTF-8");
    assert!(matches!(error, Error::NotText { .. }));
}

#[test]
fn fields_of_the_pod_are_found_by_path() {
    let env = planned(
        json!({"name": "c", "env": [
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "S", "valueFrom": {"fieldRef": {"fieldPath": "spec.serviceAccountName"}}}]}),
        &Objects::default(),
    )
    .expect("planned");
    let values: Vec<_> = env.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["web", "x", "sa"]);
}

#[test]
fn references_lists_each_object_once() {
    let container: Container = serde_json::from_value(json!({"name": "c",
        "envFrom": [{"secretRef": {"name": "s"}}],
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}))
    .expect("container");
    assert_eq!(references(&container).len(), 1);
}
