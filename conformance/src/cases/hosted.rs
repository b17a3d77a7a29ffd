//! Containers that hpktainer runs on a host, outside any bubble's namespaces, on the network of
//! the bubble there: datapath `tap`.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::network::{get, web};
use super::{Context, in_namespace};
use crate::testbed::{Exec, Testbed};
use crate::wait;

const IMAGE: &str = "docker://busybox:1.37";

fn on_host<'a>(testbed: &'a Testbed, arguments: &str) -> Exec<'a> {
    testbed
        .on("hpc", "node1", format!("/hpk/bin/hpktainer {arguments}"))
        .limit(90)
}

/// What the bubble of node1 and the host itself know of containers on the host.
fn left(testbed: &Testbed) -> Result<String> {
    testbed
        .on(
            "hpc",
            "node1",
            "pgrep -au hpc -f 'relay po[d]|hpktainer ru[n]'; \
             apptainer exec instance://bubble1 sh -c 'ls /var/lib/hpk/cni/attachments; \
             grep -l hpktainer /var/lib/hpk/cni/networks/hpk/* ' | grep hpktainer; true",
        )
        .success()
}

fn nothing_is_left(testbed: &Testbed) -> Result<()> {
    wait::until("nothing to be left", Duration::from_secs(30), || {
        let left = left(testbed)?;
        Ok(if left.trim().is_empty() {
            Ok(())
        } else {
            Err(left)
        })
    })
}

pub fn hpktainer_on_a_host_is_on_the_network_of_its_bubble(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "hosted", |cluster, namespace| {
        let pods = web(cluster, namespace)?;
        let address = on_host(
            &testbed,
            &format!("run --rm {IMAGE} ip -4 -o addr show tap0"),
        )
        .success()?;
        ensure!(
            address.contains("10.244."),
            "tap0 has no address of the pod network: {address:?}"
        );
        let service = cluster.value(namespace, "service/web", "{.spec.clusterIP}")?;
        for pod in &pods {
            let name = on_host(
                &testbed,
                &format!("run --rm {IMAGE} wget -qO- http://{}:8080/hostname", pod.ip),
            )
            .success()?;
            ensure!(
                name == pod.name,
                "{} on {} answered as {name}",
                pod.name,
                pod.node
            );
        }
        let name = on_host(
            &testbed,
            &format!("run --rm {IMAGE} wget -qO- http://{service}/hostname"),
        )
        .success()?;
        ensure!(
            pods.iter().any(|pod| pod.name == name),
            "the Service {service} answered as {name}"
        );
        let page = on_host(
            &testbed,
            &format!("run --rm {IMAGE} wget -qO- http://outside.hpk.test/"),
        )
        .success()?;
        ensure!(!page.is_empty(), "outside.hpk.test gave nothing");

        // The other way: pods of every node reach a container on the host.
        on_host(
            &testbed,
            &format!("run -d --name hosted {IMAGE} sh -c 'echo hosted > /page; exec httpd -f -p 8000 -h /'"),
        )
        .success()?;
        let reached = (|| {
            let line = on_host(&testbed, "exec hosted ip -4 -o addr show tap0").success()?;
            let ip = line
                .split_whitespace()
                .find_map(|word| word.strip_suffix("/24"))
                .unwrap_or_default()
                .to_owned();
            for pod in &pods {
                let url = format!("http://{ip}:8000/page");
                let page = get(cluster, namespace, &pod.name, &url)?;
                ensure!(page.trim() == "hosted", "{} got {page:?}", pod.name);
            }
            Ok(())
        })();
        on_host(&testbed, "rm -f hosted").success()?;
        reached?;

        let ended = on_host(&testbed, &format!("run --rm {IMAGE} sh -c 'exit 23'")).output()?;
        ensure!(
            ended.status == 23,
            "exit {} instead of 23: {}",
            ended.status,
            ended.stderr
        );
        let terminal = testbed
            .on(
                "hpc",
                "node1",
                format!("script -qec \"/hpk/bin/hpktainer run --rm -it {IMAGE} sh -c 'test -t 0 && test -t 1 && echo a terminal'\" /dev/null"),
            )
            .limit(90)
            .success()?;
        ensure!(terminal.contains("a terminal"), "{terminal:?}");
        nothing_is_left(&testbed)
    })
}

pub fn a_killed_hpktainer_on_a_host_leaves_nothing_in_the_bubble(
    context: &mut Context,
) -> Result<()> {
    context.cluster()?;
    let testbed = context.testbed.clone();
    on_host(&testbed, &format!("run -d --name killed {IMAGE} sleep 600")).success()?;
    let before = left(&testbed)?;
    ensure!(before.contains("hpktainer-"), "no attachment: {before:?}");
    testbed
        .on("hpc", "node1", "pkill -9 -o -u hpc -f 'hpktainer ru[n]'")
        .success()?;
    nothing_is_left(&testbed)?;
    on_host(&testbed, "rm -f killed").success().map(drop)
}

pub fn hpktainer_on_a_host_without_a_bubble_says_what_to_do(context: &mut Context) -> Result<()> {
    let said = context
        .testbed
        .on(
            "hpc",
            "login",
            format!("/hpk/bin/hpktainer run --rm {IMAGE} true"),
        )
        .output()?;
    ensure!(
        said.status == 125
            && said.stderr.contains("no bubble of yours runs on this host")
            && said.stderr.contains("hpk.slurm"),
        "on a host without a bubble: {said:?}"
    );
    Ok(())
}
