//! Pods' traffic: to each other, to Services, to the outside.

use anyhow::{Result, bail, ensure};

use super::{Context, in_namespace};
use crate::cluster::Cluster;

/// An agnhost HTTP server on every node, and a Service in front.
const WEB: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.k8s.io/e2e-test-images/agnhost:2.63.0
        args: [netexec, --http-port=8080]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web-local}
spec:
  selector: {app: web}
  internalTrafficPolicy: Local
  ports: [{port: 80, targetPort: 8080}]
"#;

#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub ip: String,
    pub node: String,
}

/// A web server on every node, ready; and a Service `web` in front.
pub fn web(cluster: &Cluster, namespace: &str) -> Result<Vec<Pod>> {
    cluster.apply(namespace, WEB)?;
    cluster.roll_out(namespace, "daemonset/web", 90)?;
    let pods = cluster.json(&format!("-n {namespace} get pods -l app=web"))?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let pods: Vec<Pod> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| Pod {
            name: text(&pod["metadata"]["name"]),
            ip: text(&pod["status"]["podIP"]),
            node: text(&pod["spec"]["nodeName"]),
        })
        .collect();
    ensure!(
        pods.len() == cluster.nodes,
        "the DaemonSet has {} pods on {} nodes",
        pods.len(),
        cluster.nodes
    );
    Ok(pods)
}

/// The page at `url`, asked for from `pod`. Tried again for ten seconds: a Service's rules reach
/// a node a little after the endpoints do.
pub fn get(cluster: &Cluster, namespace: &str, pod: &str, url: &str) -> Result<String> {
    cluster
        .exec(
            namespace,
            pod,
            &format!("curl -sS --fail --max-time 10 --connect-timeout 2 --retry 5 --retry-delay 1 --retry-all-errors {url}"),
        )
        .success()
}

pub fn pods_reach_each_other_by_address(context: &mut Context) -> Result<()> {
    in_namespace(context, "net-address", |cluster, namespace| {
        let pods = web(cluster, namespace)?;
        for from in &pods {
            for to in &pods {
                let name = get(
                    cluster,
                    namespace,
                    &from.name,
                    &format!("http://{}:8080/hostname", to.ip),
                )?;
                ensure!(name == to.name, "{} answered for {}", name, to.name);
                let seen = get(
                    cluster,
                    namespace,
                    &from.name,
                    &format!("http://{}:8080/clientip", to.ip),
                )?;
                ensure!(
                    seen.starts_with(&format!("{}:", from.ip)),
                    "{} saw {seen} instead of {}",
                    to.name,
                    from.ip
                );
            }
        }
        Ok(())
    })
}

pub fn pods_answer_to_ping(context: &mut Context) -> Result<()> {
    in_namespace(context, "net-ping", |cluster, namespace| {
        let pods = web(cluster, namespace)?;
        for from in &pods {
            for to in &pods {
                cluster
                    .exec(namespace, &from.name, &format!("ping -c 1 -W 5 {}", to.ip))
                    .success()?;
            }
        }
        Ok(())
    })
}

pub fn a_pod_reaches_a_pod_of_its_own_node_through_a_cluster_ip_and_keeps_its_address(
    context: &mut Context,
) -> Result<()> {
    in_namespace(context, "net-clusterip", |cluster, namespace| {
        let pods = web(cluster, namespace)?;
        let ip = cluster.value(namespace, "service/web-local", "{.spec.clusterIP}")?;
        for pod in &pods {
            let client = format!("client-{}", pod.node);
            cluster.apply(namespace, &client_on(&client, &pod.node))?;
            cluster.wait(
                namespace,
                &format!("--for=condition=Ready pod/{client}"),
                60,
            )?;
            let own = cluster.value(namespace, &format!("pod/{client}"), "{.status.podIP}")?;
            let name = get(
                cluster,
                namespace,
                &client,
                &format!("http://{ip}/hostname"),
            )?;
            ensure!(name == pod.name, "{name} answered instead of {}", pod.name);
            let seen = get(
                cluster,
                namespace,
                &client,
                &format!("http://{ip}/clientip"),
            )?;
            ensure!(
                seen.starts_with(&format!("{own}:")),
                "the server saw {seen} instead of {own}"
            );
            // The pod itself, through the same Service: hairpin.
            let name = get(
                cluster,
                namespace,
                &pod.name,
                &format!("http://{ip}/hostname"),
            )?;
            ensure!(name == pod.name, "{name} answered instead of {}", pod.name);
        }
        Ok(())
    })
}

fn client_on(name: &str, node: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "client", "image": "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
                            "args": ["pause"]}]
        }
    })
    .to_string()
}

pub fn a_service_is_reached_by_name_from_every_node(context: &mut Context) -> Result<()> {
    in_namespace(context, "net-service", |cluster, namespace| {
        let pods = web(cluster, namespace)?;
        for pod in &pods {
            for name in [
                "web".to_owned(),
                format!("web.{namespace}.svc.cluster.local"),
            ] {
                let answer = get(
                    cluster,
                    namespace,
                    &pod.name,
                    &format!("http://{name}/hostname"),
                )?;
                ensure!(answer.starts_with("web-"), "{name} answered {answer:?}");
            }
        }
        Ok(())
    })
}

pub fn pods_reach_the_outside(context: &mut Context) -> Result<()> {
    in_namespace(context, "net-outside", |cluster, namespace| {
        for pod in web(cluster, namespace)? {
            let answer = get(cluster, namespace, &pod.name, "http://outside.hpk.test/")?;
            ensure!(!answer.is_empty(), "outside.hpk.test gave an empty page");
        }
        Ok(())
    })
}

pub fn pods_reach_the_api_server(context: &mut Context) -> Result<()> {
    in_namespace(context, "net-api", |cluster, namespace| {
        for pod in web(cluster, namespace)? {
            let answer = cluster
                .exec(
                    namespace,
                    &pod.name,
                    "sh -c 'S=/var/run/secrets/kubernetes.io/serviceaccount; \
                     curl -sS --max-time 10 --cacert $S/ca.crt -H \"Authorization: Bearer $(cat $S/token)\" \
                     https://kubernetes.default/version'",
                )
                .success()?;
            if !answer.contains("\"gitVersion\"") {
                bail!("the API server answered {answer:?} to {}", pod.name);
            }
        }
        Ok(())
    })
}
