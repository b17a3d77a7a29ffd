//! Our own images for users, as `make images` leaves them in bin/images, run by hpktainer.

use anyhow::{Result, ensure};

use super::network::{get, web};
use super::{Context, Unavailable, in_namespace};

const ARCHIVE: &str = "/hpk/bin/images/hpktainer-base.tar";

const SERVE: &str =
    r#"while :; do printf "HTTP/1.0 200 OK\r\n\r\nfrom base" | nc -lN 8000 >/dev/null; done"#;

/// In the bubbles of node1 and node2: its `tap0`, `ping` to the other bubble's container, to the outside and to
/// a pod of each node, curl to a Service; and back, from a pod to what serves in it.
pub fn hpktainer_base_reaches_other_bubbles_pods_and_the_outside(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    let there = testbed
        .on("hpc", "node1", format!("test -e {ARCHIVE}"))
        .output()?;
    if there.status != 0 {
        return Err(Unavailable("hpktainer-base has not been built: make images builds it").into());
    }
    in_namespace(context, "shipped", |cluster, namespace| {
        let hpktainer = |number: u8, arguments: &str| {
            testbed
                .on(
                    "hpc",
                    &format!("node{number}"),
                    format!("apptainer exec instance://bubble{number} hpktainer {arguments}"),
                )
                .limit(90)
                .success()
        };
        // As on a site without a registry: from the host into the store, and from there by its name.
        testbed
            .on(
                "hpc",
                "node1",
                format!("/hpk/bin/hpktainer pull oci-archive:{ARCHIVE}"),
            )
            .limit(90)
            .success()?;
        let image = concat!("localhost/hpktainer-base:", env!("CARGO_PKG_VERSION"));
        let pods = web(cluster, namespace)?;
        let service = cluster.value(namespace, "service/web", "{.spec.clusterIP}")?;
        hpktainer(2, &format!("run -d --name base {image} bash -c '{SERVE}'"))?;
        let shown = (|| {
            let line = hpktainer(2, "exec base ip -4 -o addr show tap0")?;
            let there = line
                .split_whitespace()
                .find_map(|word| word.strip_suffix("/24"))
                .unwrap_or_default()
                .to_owned();
            ensure!(!there.is_empty(), "tap0 of node2 has no address: {line:?}");
            let mut script = format!(
                "set -e; ip -4 -o addr show tap0; ping -c 1 -W 5 {there}; \
                 curl -fsS http://{service}/hostname; curl -fsS http://outside.hpk.test/ >/dev/null"
            );
            for pod in &pods {
                script += &format!("; ping -c 1 -W 5 {}", pod.ip);
            }
            let said = hpktainer(1, &format!("run --rm {image} bash -c '{script}'"))?;
            ensure!(
                said.contains("10.244."),
                "no address of the pod network: {said}"
            );
            for ip in pods.iter().map(|pod| pod.ip.as_str()).chain([&*there]) {
                ensure!(
                    said.contains(&format!("bytes from {ip}")),
                    "no answer from {ip}: {said}"
                );
            }
            for pod in &pods {
                let page = get(
                    cluster,
                    namespace,
                    &pod.name,
                    &format!("http://{there}:8000/"),
                );
                ensure!(
                    page.as_ref().is_ok_and(|page| page.contains("from base")),
                    "{} got {page:?}",
                    pod.name
                );
            }
            Ok(())
        })();
        hpktainer(2, "rm -f base")?;
        shown
    })
}
