//! How probes have ended, for `/metrics/probes`: names and labels as the stock kubelet's (pkg/kubelet/prober/prober_manager.go).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use super::Kind;
use super::check::Verdict;

/// Counts of the pods that are here.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<Key, u64>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    kind: &'static str,
    result: &'static str,
}

impl Tally {
    pub fn count(&self, pod: &Pod, container: &str, kind: Kind, verdict: &Verdict) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = Key {
            namespace: text(&pod.metadata.namespace),
            pod: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
            container: container.to_owned(),
            kind: kind.as_str(),
            result: match verdict {
                Verdict::Success | Verdict::Warning(_) => "successful",
                Verdict::Failure(_) => "failed",
                Verdict::Error(_) => "unknown",
            },
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(key).or_default() += 1;
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|key, _| key.uid != uid);
    }

    /// In Prometheus' text format.
    pub fn page(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::from(
            "# HELP prober_probe_total [BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.\n\
             # TYPE prober_probe_total counter\n",
        );
        for (key, count) in counts.iter() {
            let Key {
                namespace,
                pod,
                uid,
                container,
                kind,
                result,
            } = key;
            // Writing to a String doesn't fail.
            let _ = writeln!(
                page,
                "prober_probe_total{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",pod_uid=\"{uid}\",probe_type=\"{kind}\",result=\"{result}\"}} {count}"
            );
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_count_by_kind_and_result_until_their_pod_is_gone() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".to_owned());
        pod.metadata.uid = Some("u1".to_owned());
        let tally = Tally::default();
        for verdict in [Verdict::Success, Verdict::Success] {
            tally.count(&pod, "app", Kind::Readiness, &verdict);
        }
        let page = tally.page();
        let sample = r#"prober_probe_total{container="app",namespace="",pod="web",pod_uid="u1",probe_type="Readiness",result="successful"} 2"#;
        assert!(page.lines().any(|line| line == sample), "{page}");
        tally.forget("u1");
        assert!(!tally.page().contains("u1"));
    }
}
