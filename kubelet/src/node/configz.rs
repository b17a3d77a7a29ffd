//! `/configz`: the configuration as a KubeletConfiguration (kubelet.config.k8s.io/v1beta1), those fields that have a meaning
//! here. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::config::Config;
use crate::text::go_duration;

/// The object.
pub fn configz(config: &Config) -> Value {
    let args = &config.args;
    let eviction: BTreeMap<&str, &str> = args
        .eviction_hard
        .iter()
        .filter_map(|threshold| threshold.split_once('<'))
        .collect();
    let reserved: BTreeMap<&String, String> = config
        .reserved
        .iter()
        .map(|(name, quantity)| (name, quantity.to_api().0))
        .collect();
    let pods = config.capacity.get("pods");
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": args.address.or_else(|| args.node_ip.first().copied()),
        "port": args.port,
        "tlsCertFile": args.tls_cert_file,
        "tlsPrivateKeyFile": args.tls_private_key_file,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": args.client_ca_file},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": args.cluster_domain,
        "clusterDNS": args.cluster_dns,
        "resolvConf": args.resolv_conf,
        "staticPodPath": args.pod_manifest_path,
        "fileCheckFrequency": go_duration(args.file_check_frequency),
        "maxPods": pods.map_or(110, |quantity| quantity.value()),
        "kubeReserved": reserved,
        "evictionHard": eviction,
        "evictionPressureTransitionPeriod": go_duration(args.eviction_pressure_transition_period),
        "imageGCHighThresholdPercent": args.image_gc_high_threshold,
        "imageGCLowThresholdPercent": args.image_gc_low_threshold,
        "imageMinimumGCAge": go_duration(args.minimum_image_ttl_duration),
        "imageMaximumGCAge": go_duration(args.image_maximum_gc_age),
        "allowedUnsafeSysctls": args.allowed_unsafe_sysctls,
        "containerLogMaxSize": args.container_log_max_size.to_string(),
        "containerLogMaxFiles": args.container_log_max_files,
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Args;
    use clap::Parser;

    #[test]
    fn the_configuration_is_told_as_the_stock_kubelet_tells_it() {
        let args = Args::parse_from([
            "hpk-kubelet",
            "--kubeconfig=/k",
            "--node-name=n1",
            "--node-ip=10.244.1.0",
            "--image-store=/s",
            "--eviction-hard=memory.available<100Mi,nodefs.available<5%",
            // What stands last holds.
            "--image-gc-high-threshold=90",
            "--image-gc-high-threshold=95",
        ]);
        let all = configz(&Config::new(args).expect("valid"));
        let config = &all["kubeletconfig"];
        assert_eq!(config["evictionHard"]["nodefs.available"], "5%");
        assert_eq!(config["imageGCHighThresholdPercent"], 95);
        assert_eq!(config["evictionPressureTransitionPeriod"], "5m0s");
        assert_eq!(config["address"], "10.244.1.0");
    }
}
