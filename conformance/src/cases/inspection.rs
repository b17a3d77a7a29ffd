//! A node's pods, looked at in its bubble's shell.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, in_namespace};
use crate::testbed::Exec;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: seen}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: "busybox:1.37", command: [sh, -c, "echo first; exit 0"]}
  containers:
  - name: app
    image: busybox:1.37
    command: [sh, -c, "echo to stdout; echo to stderr >&2; exec sleep 3600"]
"#;

/// Commands typed into a bubble's shell, with nothing in its environment but what that itself sets.
fn shell<'a>(context: &'a Context, commands: &str) -> Exec<'a> {
    context
        .testbed
        .on(
            "hpc",
            "node1",
            "exec env -i HOME=$HOME PATH=$PATH apptainer --quiet shell instance://bubble1",
        )
        .input(format!("set -e\n{commands}\n"))
}

pub fn a_bubbles_shell_tells_of_pods_and_containers_as_crictl_would(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "inspection", |cluster, namespace| {
        cluster.apply(namespace, &PODS.replace("NODE", "node1"))?;
        cluster.wait(namespace, "--for=condition=Ready pod/seen", 60)?;
        let context = Context::new(testbed.clone());
        let said = |commands: &str| shell(&context, commands).success();
        let one = |commands: &str| -> Result<Value> {
            let text = said(commands)?;
            serde_json::from_str(text.trim()).with_context(|| format!("{commands} gave {text:?}"))
        };

        let pod = one(&format!("hpk-kubelet pods -n {namespace} -o json"))?;
        let ip = cluster.value(namespace, "pod/seen", "{.status.podIP}")?;
        ensure!(
            pod["name"] == "seen" && pod["state"] == "Ready" && pod["ips"][0] == ip.as_str(),
            "pods told {pod}"
        );
        let container = one(&format!("hpk-kubelet ps -n {namespace} -o json"))?;
        ensure!(
            container["name"] == "app" && container["state"] == "Running",
            "ps told {container}"
        );
        // The process of that id is the container's own, in the shell's eyes too.
        let pid = &container["pid"];
        let command = said(&format!("tr '\\0' ' ' </proc/{pid}/cmdline"))?;
        ensure!(
            command.trim() == "sleep 3600",
            "process {pid} is {command:?}"
        );

        let all = said(&format!("hpk-kubelet ps -a -n {namespace}"))?;
        let first = all.lines().find(|line| line.contains(" first "));
        ensure!(
            first.is_some_and(|line| line.contains("Exited")),
            "ps -a told:\n{all}"
        );
        let told = one("hpk-kubelet inspect seen/first")?;
        ensure!(
            told[0]["status"]["exitCode"] == 0 && told[0]["status"]["state"] == "Exited",
            "inspect told {told}"
        );
        let id = container["id"].as_str().context("no id")?.get(..12);
        let id = id.context("a short id")?;
        let told = one(&format!("hpk-kubelet inspect {id}"))?;
        ensure!(told[0]["info"]["pod"]["ips"][0] == ip.as_str(), "{told}");

        let output = shell(&context, "hpk-kubelet logs seen/app").output()?;
        ensure!(
            output.stdout == "to stdout\n" && output.stderr.contains("to stderr\n"),
            "logs told {output:?}"
        );
        let output = shell(
            &context,
            &format!("hpk-kubelet exec {id} sh -c 'echo inside; exit 7'"),
        );
        let output = output.output()?;
        ensure!(
            output.status == 7 && output.stdout == "inside\n",
            "exec told {output:?}"
        );
        let output = shell(&context, "hpk-kubelet logs nosuch").output()?;
        ensure!(
            output.status == 1 && output.stderr.contains("\"nosuch\""),
            "{output:?}"
        );
        // All of it but exec goes without the API server, and where there is no node, that is said.
        let nowhere = testbed
            .on("hpc", "login", "/hpk/bin/hpk-kubelet pods")
            .output()?;
        ensure!(
            nowhere.status == 1 && nowhere.stderr.contains("bubble"),
            "{nowhere:?}"
        );
        Ok(())
    })
}
