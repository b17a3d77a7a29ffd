//! The variables that Services give to containers: `NAME_SERVICE_HOST`, `…_PORT` and the older
//! link form. Source: Kubernetes, "Service, Environment variables".

use k8s_openapi::api::core::v1::Service;

/// Variables of the Services a pod of `namespace` sees. `default/kubernetes` is always among them,
/// unless the namespace has a Service of that name; the namespace's own only with `links`.
pub fn variables(services: &[Service], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut seen: Vec<&Service> = Vec::new();
    for service in services.iter().filter(|service| has_address(service)) {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = of == "default" && name == "kubernetes";
        if of == namespace && (links || master) {
            seen.retain(|other| other.metadata.name.as_deref() != Some(name));
            seen.push(service);
        } else if master
            && !seen
                .iter()
                .any(|other| other.metadata.name.as_deref() == Some("kubernetes"))
        {
            seen.push(service);
        }
    }
    seen.into_iter().flat_map(of_service).collect()
}

fn has_address(service: &Service) -> bool {
    let ip = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    !matches!(ip, None | Some("" | "None"))
}

fn of_service(service: &Service) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let Some(spec) = &service.spec else {
        return variables;
    };
    let name = variable_name(service.metadata.name.as_deref().unwrap_or_default());
    let address = spec.cluster_ip.clone().unwrap_or_default();
    let bracketed = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else {
        return variables;
    };
    variables.push((format!("{name}_SERVICE_HOST"), address.clone()));
    variables.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let key = format!("{name}_SERVICE_PORT_{}", variable_name(port_name));
            variables.push((key, port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{bracketed}:{}", port.port);
        if index == 0 {
            variables.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.push((prefix.clone(), url));
        variables.push((format!("{prefix}_PROTO"), lower));
        variables.push((format!("{prefix}_PORT"), port.port.to_string()));
        variables.push((format!("{prefix}_ADDR"), address.clone()));
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(namespace: &str, name: &str) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": "10.43.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}
        }))
        .expect("a service")
    }

    #[test]
    fn the_api_servers_address_is_given_even_without_links() {
        let services = [service("default", "kubernetes"), service("ns1", "web-app")];
        let names: Vec<_> = variables(&services, "ns1", false)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(names.contains(&"KUBERNETES_SERVICE_HOST".to_owned()));
        assert!(!names.iter().any(|name| name.starts_with("WEB_APP")));
    }

    #[test]
    fn links_name_host_port_and_url() {
        let all = variables(&[service("ns1", "web-app")], "ns1", true);
        assert!(all.contains(&("WEB_APP_SERVICE_PORT_HTTPS".to_owned(), "443".to_owned())));
        let url = "tcp://10.43.0.1:443".to_owned();
        assert!(all.contains(&("WEB_APP_PORT_443_TCP".to_owned(), url)));
    }
}
