//! CPU and memory of a container, or of a pod's containers together, as cgroup values. Pure.
//! Source: pkg/kubelet/cm/helpers_linux.go (ResourceConfigForPod); pkg/kubelet/kuberuntime,
//! kuberuntime_container_linux.go (getMemoryLimit, getCPULimit, calculateLinuxResources).

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources, LinuxResourcesBuilder,
};

use crate::pod::admission;
use crate::qos;
use crate::quantity::Quantity;

/// Microseconds over which a CPU quota counts.
const PERIOD: u64 = 100_000;
/// What v1 and v2 take for "not limited".
const UNLIMITED: i64 = -1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Weight of its share of busy CPUs, as cgroup v1 counts: 1024 for one CPU.
    shares: u64,
    /// Microseconds of CPU time in a period.
    quota: Option<i64>,
    /// Bytes.
    memory: Option<i64>,
}

impl Limits {
    /// Of a container with resources `own` in a pod that has `whole` as a whole: where it has no limit, the pod's
    /// is written into its cgroup too, so that programs which look there for theirs find one.
    pub fn of_container(
        own: Option<&ResourceRequirements>,
        whole: Option<&ResourceRequirements>,
    ) -> Self {
        let limit = |name: &str| {
            let set =
                |resources| qos::limited(resources, name).filter(|q| *q > Quantity::default());
            set(own).or_else(|| set(whole))
        };
        let cpu = limit("cpu");
        let requested = qos::requested(own, "cpu").or(cpu).unwrap_or_default();
        Self {
            shares: shares(requested),
            quota: cpu.and_then(quota),
            memory: limit("memory").and_then(bytes),
        }
    }

    /// Of all containers together: limited in what each of them is limited in, or the pod as a whole.
    pub fn of_pod(spec: &PodSpec) -> Self {
        let requested = admission::requests(spec);
        let limited = admission::limits(spec);
        let limit = |name: &str| limited.get(name).copied();
        Self {
            shares: shares(requested.get("cpu").copied().unwrap_or_default()),
            quota: limit("cpu").and_then(quota),
            memory: limit("memory").and_then(bytes),
        }
    }

    /// Bytes; none if it isn't limited.
    pub fn memory(&self) -> Option<u64> {
        self.memory.and_then(|bytes| u64::try_from(bytes).ok())
    }

    /// The looser of each: what holds while containers go from one to the other.
    pub fn or_looser(self, other: Self) -> Self {
        let looser = |a: Option<i64>, b: Option<i64>| Some(a?.max(b?));
        Self {
            shares: self.shares.max(other.shares),
            quota: looser(self.quota, other.quota),
            memory: looser(self.memory, other.memory),
        }
    }

    /// For a cgroup that is made: what isn't limited is left out.
    pub fn for_new(&self) -> Result<LinuxResources, OciSpecError> {
        let mut cpu = LinuxCpuBuilder::default().shares(self.shares);
        if let Some(quota) = self.quota {
            cpu = cpu.period(PERIOD).quota(quota);
        }
        let mut resources = LinuxResourcesBuilder::default().cpu(cpu.build()?);
        if let Some(limit) = self.memory {
            resources = resources.memory(LinuxMemoryBuilder::default().limit(limit).build()?);
        }
        resources.build()
    }

    /// For one that is there: what is no longer limited is said to be so.
    pub fn for_update(&self) -> Result<LinuxResources, OciSpecError> {
        let everything = Self {
            quota: self.quota.or(Some(UNLIMITED)),
            memory: self.memory.or(Some(UNLIMITED)),
            ..*self
        };
        everything.for_new()
    }
}

fn shares(requested: Quantity) -> u64 {
    u64::try_from((requested.milli() * 1024 / 1000).clamp(2, 262_144)).unwrap_or(2)
}

fn quota(limit: Quantity) -> Option<i64> {
    let limit = Some(limit.milli()).filter(|milli| *milli > 0)?;
    Some(i64::try_from((limit * 100).max(1000)).unwrap_or(i64::MAX))
}

fn bytes(limit: Quantity) -> Option<i64> {
    let limit = Some(limit.value()).filter(|bytes| *bytes > 0)?;
    Some(i64::try_from(limit).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(containers: Value) -> Limits {
        let spec = json!({"containers": containers});
        Limits::of_pod(&serde_json::from_value(spec).expect("spec"))
    }

    fn limited(name: &str, cpu: &str, memory: &str) -> Value {
        json!({"name": name, "resources": {"limits": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn a_pod_is_limited_only_if_all_its_containers_are() {
        let one = limited("a", "500m", "64Mi");
        let both = pod(json!([one, limited("b", "250m", "64Mi")]));
        assert_eq!((both.quota, both.memory), (Some(75_000), Some(128 << 20)));
        let half = pod(json!([one, {"name": "b"}]));
        assert_eq!((half.quota, half.memory), (None, None));
    }

    #[test]
    fn a_container_without_limits_has_its_pods() {
        let limits = |own: Value, whole: Value| {
            let [own, whole] =
                [own, whole].map(|it| serde_json::from_value(it).expect("resources"));
            Limits::of_container(Some(&own), Some(&whole))
        };
        let whole = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
        let none = limits(json!({}), whole.clone());
        assert_eq!((none.shares, none.quota), (2048, Some(200_000)));
        assert_eq!(none.memory, Some(1 << 30));
        let own = json!({"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi"}});
        let some = limits(own, whole);
        assert_eq!((some.shares, some.quota), (512, Some(200_000)));
        assert_eq!(some.memory, Some(64 << 20));
        assert_eq!(limits(json!({}), json!({})).memory, None);
    }

    #[test]
    fn between_two_limits_the_looser_holds() {
        let (small, large) = (
            pod(json!([limited("a", "1", "1Gi")])),
            pod(json!([limited("a", "2", "512Mi")])),
        );
        let between = small.or_looser(large);
        assert_eq!(
            (between.quota, between.memory),
            (Some(200_000), Some(1 << 30))
        );
        let free = pod(json!([{"name": "a"}]));
        assert_eq!(small.or_looser(free).memory, None);
    }

    #[test]
    fn an_update_says_what_is_no_longer_limited() {
        let free = pod(json!([{"name": "a"}]));
        let memory = |resources: LinuxResources| resources.memory().and_then(|m| m.limit());
        assert_eq!(memory(free.for_new().expect("valid")), None);
        assert_eq!(memory(free.for_update().expect("valid")), Some(-1));
    }
}
