//! The text of `/etc/hosts` and `/etc/resolv.conf`. Pure.
//! Source: Kubernetes, "DNS for Services and Pods"; pkg/kubelet/network/dns.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::hostname::Names;

/// What the node knows of name resolution.
#[derive(Debug, Clone)]
pub struct Resolver {
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's own resolv.conf.
    pub host: String,
}

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

#[derive(Debug, Default)]
struct Parsed {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => parsed.nameservers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => parsed.searches = words.map(str::to_owned).collect(),
            Some("options") => parsed.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    parsed
}

/// The pod's resolv.conf, by its dnsPolicy and dnsConfig.
pub fn resolv_conf(pod: &Pod, resolver: &Resolver) -> String {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref());
    let cluster_first = match policy {
        Some("ClusterFirstWithHostNet") => true,
        Some("ClusterFirst") | None => !host_network,
        _ => false,
    } && !resolver.cluster_dns.is_empty();
    let mut conf = match policy {
        Some("None") => Parsed::default(),
        _ => parse(&resolver.host),
    };
    if cluster_first {
        conf.nameservers = resolver.cluster_dns.iter().map(IpAddr::to_string).collect();
        let domain = &resolver.cluster_domain;
        let mut searches = vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ];
        searches.append(&mut conf.searches);
        conf.searches = searches;
        conf.options = vec!["ndots:5".to_owned()];
    }
    if let Some(extra) = spec.and_then(|s| s.dns_config.as_ref()) {
        conf.nameservers
            .extend(extra.nameservers.iter().flatten().cloned());
        conf.searches
            .extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            conf.options
                .retain(|known| known.split(':').next() != Some(name));
            conf.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    render(conf)
}

fn render(conf: Parsed) -> String {
    let mut text = String::new();
    let mut searches: Vec<String> = Vec::new();
    for search in conf.searches {
        if !searches.contains(&search) {
            searches.push(search);
        }
    }
    searches.truncate(MAX_SEARCHES);
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    let mut nameservers: Vec<String> = Vec::new();
    for server in conf.nameservers {
        if !nameservers.contains(&server) {
            nameservers.push(server);
        }
    }
    for server in nameservers.iter().take(MAX_NAMESERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !conf.options.is_empty() {
        text.push_str(&format!("options {}\n", conf.options.join(" ")));
    }
    text
}

/// The pod's /etc/hosts. `host`: the node's own, for pods on its network.
pub fn hosts(pod: &Pod, ips: &[String], names: &Names, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let mut text = String::new();
    if spec.and_then(|s| s.host_network) == Some(true) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(host);
        if !host.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(concat!(
            "# Kubernetes-managed hosts file.\n",
            "127.0.0.1\tlocalhost\n",
            "::1\tlocalhost ip6-localhost ip6-loopback\n",
            "fe00::\tip6-localnet\n",
            "fe00::\tip6-mcastprefix\n",
            "fe00::1\tip6-allnodes\n",
            "fe00::2\tip6-allrouters\n",
        ));
        let hostname = &names.hostname;
        for ip in ips {
            match &names.domain {
                Some(domain) => {
                    text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
                }
                None => text.push_str(&format!("{ip}\t{hostname}\n")),
            }
        }
    }
    let aliases: Vec<_> = spec
        .and_then(|s| s.host_aliases.as_ref())
        .into_iter()
        .flatten()
        .collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::hostname::names;
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        let meta = json!({"name": "web", "namespace": "ns1"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("pod")
    }

    fn resolver() -> Resolver {
        Resolver {
            cluster_dns: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".to_owned(),
            host: "search site.org\nnameserver 192.0.2.1\noptions timeout:1\n".to_owned(),
        }
    }

    #[test]
    fn cluster_first_asks_the_cluster_and_searches_the_site_last() {
        let text = resolv_conf(&pod(json!({"containers": []})), &resolver());
        assert_eq!(
            text,
            "search ns1.svc.cluster.local svc.cluster.local cluster.local site.org\n\
             nameserver 10.43.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn on_the_host_network_cluster_first_means_the_hosts_resolver() {
        let text = resolv_conf(
            &pod(json!({"containers": [], "hostNetwork": true})),
            &resolver(),
        );
        assert!(text.contains("nameserver 192.0.2.1"));
    }

    #[test]
    fn policy_none_is_the_pods_own_config_alone() {
        let spec = json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["192.0.2.9"], "options": [{"name": "ndots", "value": "2"}]}});
        let text = resolv_conf(&pod(spec), &resolver());
        assert_eq!(text, "nameserver 192.0.2.9\noptions ndots:2\n");
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let spec = json!({"containers": [], "subdomain": "sub",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]});
        let pod = pod(spec);
        let names = names(&pod, "cluster.local", "node1").expect("names");
        let text = hosts(&pod, &["10.244.1.5".to_owned()], &names, "");
        assert!(text.contains("10.244.1.5\tweb.sub.ns1.svc.cluster.local\tweb\n"));
        assert!(text.ends_with("192.0.2.7\ta\tb\n"));
    }
}
