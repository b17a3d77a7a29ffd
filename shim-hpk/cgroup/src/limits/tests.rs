use serde_json::json;

use super::*;

fn planned(version: Version, resources: serde_json::Value) -> Vec<(String, String)> {
    plan(version, &serde_json::from_value(resources).unwrap())
        .unwrap()
        .into_iter()
        .map(|w| (w.file, w.value))
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[test]
fn memory_and_swap_are_one_figure_in_v1_and_two_in_v2() {
    let resources = json!({"memory": {"limit": 1000, "swap": 1500}});
    assert_eq!(
        planned(Version::V1, resources.clone()),
        pairs(&[
            ("memory.limit_in_bytes", "1000"),
            ("memory.memsw.limit_in_bytes", "1500")
        ])
    );
    assert_eq!(
        planned(Version::V2, resources),
        pairs(&[("memory.max", "1000"), ("memory.swap.max", "500")])
    );
}

#[test]
fn minus_one_is_no_limit() {
    let resources = json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}});
    assert_eq!(
        planned(Version::V2, resources),
        pairs(&[
            ("memory.max", "max"),
            ("cpu.max", "max 100000"),
            ("pids.max", "max")
        ])
    );
}

#[test]
fn a_cpu_quota_comes_after_its_period() {
    let resources = json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100_000}});
    assert_eq!(
        planned(Version::V1, resources.clone()),
        pairs(&[
            ("cpu.shares", "1024"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000")
        ])
    );
    assert_eq!(
        planned(Version::V2, resources),
        pairs(&[("cpu.weight", "39"), ("cpu.max", "50000 100000")])
    );
}

#[test]
fn device_rules_start_from_what_the_spec_denies() {
    let resources = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
    ]});
    let writes = planned(Version::V1, resources.clone());
    assert_eq!(writes[0], ("devices.deny".to_owned(), "a".to_owned()));
    assert_eq!(
        writes[1],
        ("devices.allow".to_owned(), "c 10:229 rw".to_owned())
    );
    assert_eq!(writes.len(), 2 + ALWAYS_ALLOWED.len());
    assert_eq!(planned(Version::V2, resources), []);
}

#[test]
fn names_that_would_leave_the_cgroup_are_refused() {
    for resources in [
        json!({"unified": {"../memory.max": "1"}}),
        json!({"unified": {"": "1"}}),
        json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}),
    ] {
        let resources = serde_json::from_value(resources).unwrap();
        let error = plan(Version::V2, &resources).unwrap_err().to_string();
        assert!(error.contains("names no file of a cgroup"), "{error}");
    }
}

#[test]
fn values_no_cgroup_takes_are_refused_by_their_names() {
    for (resources, field) in [
        (json!({"memory": {"swappiness": 101}}), "memory.swappiness"),
        (json!({"memory": {"limit": 10, "swap": 5}}), "memory.swap"),
        (json!({"cpu": {"cpus": "0;rm"}}), "cpu.cpus"),
    ] {
        let resources = serde_json::from_value(resources).unwrap();
        let error = plan(Version::V2, &resources).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("linux.resources.{field} is invalid")),
            "{error}"
        );
    }
}
