//! Bad input: a clear error that names the value, and nothing lost.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, SIZE, in_namespace};
use crate::cluster::{self, Cluster};
use crate::wait;

/// Waits for an event of `pod` whose text has all of `words`.
pub fn event(cluster: &Cluster, namespace: &str, pod: &str, words: &[&str]) -> Result<()> {
    wait::until(
        &format!("an event of {pod} with {words:?}"),
        Duration::from_secs(60),
        || {
            let events = cluster
                .kubectl(&format!(
                    "-n {namespace} get events --field-selector involvedObject.name={pod} \
                     -o jsonpath='{{range .items[*]}}{{.reason}} {{.message}}{{\"\\n\"}}{{end}}'"
                ))
                .success()?;
            let found = events
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)));
            Ok(if found { Ok(()) } else { Err(events) })
        },
    )
}

pub fn an_image_that_does_not_exist_is_named_in_the_event(context: &mut Context) -> Result<()> {
    in_namespace(context, "no-image", |cluster, namespace| {
        cluster
            .kubectl(&format!(
                "-n {namespace} run absent --image=docker.io/library/nosuch:9"
            ))
            .success()?;
        event(cluster, namespace, "absent", &["Failed", "nosuch:9"])?;
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=ImagePullBackOff pod/absent",
            60,
        )
    })
}

/// The policy is the user's own file; nothing has to be started again for it.
pub fn an_image_that_the_policy_rejects_is_named_in_the_event(context: &mut Context) -> Result<()> {
    const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}], "transports":
        {"docker": {"docker.io/library/nginx": [{"type": "reject"}]}}}"#;
    let testbed = context.testbed.clone();
    let login = |script: &str| testbed.on("hpc", "login", script.to_owned());
    in_namespace(context, "rejected-image", |cluster, namespace| {
        login("cat >~/.hpk/policy.json").input(POLICY).success()?;
        let image = "--image=docker.io/library/nginx:1.27 --image-pull-policy=Always";
        let seen = cluster
            .kubectl(&format!("-n {namespace} run rejected {image}"))
            .success()
            .and_then(|_| {
                let words = ["Failed", "nginx:1.27 is refused", "policy.json rejects it"];
                event(cluster, namespace, "rejected", &words)
            });
        login("rm ~/.hpk/policy.json").success()?;
        seen
    })
}

pub fn a_volume_that_cannot_be_had_is_named_in_the_event(context: &mut Context) -> Result<()> {
    in_namespace(context, "no-volume", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec:
  containers:
  - {name: app, image: "busybox:1.37", command: [sleep, "60"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, configMap: {name: nosuch}}]
---
apiVersion: v1
kind: Pod
metadata: {name: nohost}
spec:
  containers:
  - {name: app, image: "busybox:1.37", command: [sleep, "60"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, hostPath: {path: /no/such/folder, type: Directory}}]
"#,
        )?;
        event(
            cluster,
            namespace,
            "absent",
            &["FailedMount", "data", "nosuch"],
        )?;
        event(
            cluster,
            namespace,
            "nohost",
            &["FailedMount", "data", "/no/such/folder"],
        )?;
        // It is not lost: what was missing comes, and the pod runs.
        cluster
            .kubectl(&format!(
                "-n {namespace} create configmap nosuch --from-literal=a=b"
            ))
            .success()?;
        cluster.wait(namespace, "--for=condition=Ready pod/absent", 90)
    })
}

pub fn an_overlarge_pod_is_left_pending_by_the_scheduler(context: &mut Context) -> Result<()> {
    in_namespace(context, "too-large", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  containers:
  - {name: app, image: "busybox:1.37", resources: {requests: {cpu: "3"}}}
"#,
        )?;
        event(
            cluster,
            namespace,
            "large",
            &["FailedScheduling", "Insufficient cpu"],
        )
    })
}

pub fn a_malformed_cni_conf_is_refused_with_its_fault(context: &mut Context) -> Result<()> {
    let call = |conf: &str| {
        context
            .testbed
            .on(
                "root",
                "node1",
                "CNI_COMMAND=ADD CNI_CONTAINERID=x CNI_NETNS=/proc/self/ns/net CNI_IFNAME=eth0 \
                 CNI_PATH=/opt/cni/bin:/usr/lib/cni /hpk/bin/cni-hpk",
            )
            .input(conf)
            .output()
    };
    for (conf, word) in [
        ("{not json", "code"),
        (
            r#"{"cniVersion":"1.1.0","name":"x","type":"cni-hpk","datapath":"teleport"}"#,
            "teleport",
        ),
        (
            r#"{"cniVersion":"9.9.9","name":"x","type":"cni-hpk"}"#,
            "9.9.9",
        ),
    ] {
        let output = call(conf)?;
        ensure!(output.status != 0, "{conf} was accepted");
        let error: serde_json::Value = serde_json::from_str(&output.stdout).map_err(|error| {
            anyhow::anyhow!("{conf}: no error JSON ({error}) in {:?}", output.stdout)
        })?;
        ensure!(
            error["code"].is_u64() && error["msg"].is_string(),
            "{conf}: {error}"
        );
        ensure!(
            output.stdout.contains(word),
            "{conf}: {word:?} is not in {error}"
        );
    }
    Ok(())
}

/// Submits a job that must not start, and gives what it said at its end.
fn refused(context: &Context, options: &str) -> Result<String> {
    let submit = context
        .testbed
        .on(
            "hpc",
            "login",
            format!(
                "cd && sbatch --parsable --output=hpk-%j.log {SIZE} --nodes=1 {options} /hpk/slurm/hpk.slurm"
            ),
        )
        .success()?;
    let job = submit.trim();
    cluster::await_end(&context.testbed, job)?;
    cluster::log(&context.testbed, "hpc", job)
}

pub fn a_missing_apptainer_is_named(context: &mut Context) -> Result<()> {
    let log = refused(context, "--export=ALL,HPK_APPTAINER=/no/such/apptainer")?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(
        last.contains("/no/such/apptainer"),
        "the job's last line is {last:?} of:\n{log}"
    );
    Ok(())
}

pub fn a_folder_without_the_programs_is_named(context: &mut Context) -> Result<()> {
    for folder in ["/no/such/bin", "bin"] {
        let log = refused(context, &format!("--export=ALL,HPK_BIN={folder}"))?;
        ensure!(
            log.starts_with(&format!("hpk: HPK_BIN={folder} is not ")) && log.lines().count() == 1,
            "the job said:\n{log}"
        );
    }
    Ok(())
}

pub fn a_cgroup_that_nobody_gave_is_named(context: &mut Context) -> Result<()> {
    let log = refused(context, "--export=ALL,HPK_CGROUP=nosuch")?;
    let last = log.lines().last().unwrap_or_default();
    ensure!(
        last.contains("HPK_CGROUP") && last.contains("nosuch"),
        "the job's last line is {last:?} of:\n{log}"
    );
    Ok(())
}

pub fn a_full_image_store_is_reported_and_keeps_what_it_has(context: &mut Context) -> Result<()> {
    // A small file system of the case's own, filled to the brim, as the store's place.
    let script = r#"
        set -eu
        d=$(mktemp -d); local=$(mktemp -d); trap 'umount "$d"; rmdir "$d"; rm -r "$local"' EXIT
        mount -t tmpfs -o size=2m tmpfs "$d"
        export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt HPK_STORE="$d/store" HPK_HOME=/home/hpc/.hpk
        HPKTAINER_ROOT="$d/state" HPK_LOCAL_DIR="$local" /hpk/bin/hpktainer pull docker://registry.k8s.io/e2e-test-images/agnhost:2.63.0 2>&1 && exit 1
        find "$d" -type f -size +0 | grep -v '\.json$' | sed 's/^/left: /'
    "#;
    let output = context
        .testbed
        .on("root", "node1", script)
        .limit(120)
        .output()?;
    ensure!(output.status == 0, "the pull into a full store: {output:?}");
    ensure!(
        output.stdout.contains("No space left") || output.stdout.contains("no space"),
        "the error does not say that space is short: {}",
        output.stdout
    );
    ensure!(
        !output.stdout.contains("left: "),
        "something half-made is left: {}",
        output.stdout
    );
    Ok(())
}
