//! `/metrics/resource`, which metrics-server reads for `kubectl top`: names, labels and times in
//! milliseconds as the stock kubelet's.
//! Source: pkg/kubelet/metrics/collectors/resource_metrics.go; Prometheus' text format 0.0.4.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;

use super::{Figures, Usage};

/// The whole page.
pub fn page(usage: &Usage, now: Timestamp) -> String {
    let at = now.as_millisecond();
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
        // Writing to a String doesn't fail.
        let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value} {at}");
        }
    };
    let containers = |value: &dyn Fn(&super::ContainerUsage) -> String| -> Vec<_> {
        let of_pod = |pod: &super::PodUsage| -> Vec<_> {
            let labels = |name: &str| {
                format!(
                    "{{container=\"{name}\",namespace=\"{}\",pod=\"{}\"}}",
                    pod.namespace, pod.name
                )
            };
            let containers = pod.containers.iter();
            containers.map(|c| (labels(&c.name), value(c))).collect()
        };
        usage.pods.iter().flat_map(of_pod).collect()
    };
    let pods = |value: &dyn Fn(&Figures) -> String| -> Vec<_> {
        let pods = usage.pods.iter();
        pods.map(|pod| {
            let labels = format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
            (labels, value(&pod.all))
        })
        .collect()
    };
    let node = |value: String| [(String::new(), value)];
    let cpu = |figures: &Figures| format!("{}", figures.cpu.as_secs_f64());
    let memory = |figures: &Figures| figures.working_set.to_string();
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &containers(&|container| cpu(&container.all)),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &containers(&|container| memory(&container.all)),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &containers(&|container| seconds(container.started_at)),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        &node(cpu(&usage.all)),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        &node(memory(&usage.all)),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        &pods(&cpu),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        &pods(&memory),
    );
    let failed = i32::from(usage.unknown > 0);
    let _ = writeln!(
        text,
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
         # TYPE resource_scrape_error gauge\n\
         resource_scrape_error {failed}"
    );
    text
}

fn seconds(at: Timestamp) -> String {
    format!("{}", at.as_millisecond() as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_stock_kubelets_name_labels_and_time() {
        let now = Timestamp::from_second(300).expect("in range");
        let page = page(&Usage::for_tests(), now);
        for line in [
            r#"container_cpu_usage_seconds_total{container="app",namespace="default",pod="web"} 1.5 300000"#,
            r#"container_start_time_seconds{container="app",namespace="default",pod="web"} 200 300000"#,
            r#"pod_memory_working_set_bytes{namespace="default",pod="web"} 4096 300000"#,
            "node_cpu_usage_seconds_total 3 300000",
            "resource_scrape_error 0",
        ] {
            assert!(page.lines().any(|seen| seen == line), "{line}:\n{page}");
        }
    }
}
