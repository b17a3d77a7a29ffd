//! What a pod's specification means.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Context, in_namespace};

const FED: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, motto: "per aspera"}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: swordfish}
---
apiVersion: v1
kind: Pod
metadata:
  name: fed
  labels: {tier: "front"}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: fed
    image: busybox:1.37
    command: [sleep, "3600"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 64Mi}}
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: GREETING, value: "$(COLOUR) $(NODE) $$(COLOUR)"}
    envFrom:
    - {prefix: S_, configMapRef: {name: settings}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: key, mountPath: /key, readOnly: true}
    - {name: about, mountPath: /about}
    - {name: scratch, mountPath: /scratch}
    - {name: host, mountPath: /host, readOnly: true}
    - {name: settings, mountPath: /one, subPath: motto}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: key, secret: {secretName: key, defaultMode: 0400}}
  - name: about
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
  - {name: scratch, emptyDir: {}}
  - {name: host, hostPath: {path: /usr/local/bin, type: Directory}}
"#;

pub fn a_node_keeps_memory_for_its_own_daemons(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    let mut kept = Vec::new();
    for node in ["node1", "node2", "node3"] {
        let bytes = |field: &str| -> Result<u64> {
            let path = format!("{{.status.{field}.memory}}");
            Ok(cluster
                .value("default", &format!("node/{node}"), &path)?
                .parse()?)
        };
        kept.push((bytes("capacity")? - bytes("allocatable")?) >> 20);
    }
    // The control plane is on the first.
    ensure!(
        kept[0] >= kept[1] + 400 && kept[1] >= 50 && kept[1] == kept[2],
        "MiB kept from pods: {kept:?}"
    );
    Ok(())
}

pub fn environment_volumes_and_tokens_arrive_in_a_pod(context: &mut Context) -> Result<()> {
    in_namespace(context, "fed", |cluster, namespace| {
        cluster.apply(namespace, FED)?;
        cluster.wait(namespace, "--for=condition=Ready pod/fed", 60)?;
        let node = cluster.value(namespace, "pod/fed", "{.spec.nodeName}")?;
        let ip = cluster.value(namespace, "pod/fed", "{.status.podIP}")?;
        let expected = [
            ("echo $COLOUR", "blue".to_owned()),
            ("echo $PASSWORD", "swordfish".to_owned()),
            ("echo $NODE $ADDRESS", format!("{node} {ip}")),
            ("echo $MEMORY", (64 << 20).to_string()),
            ("echo $GREETING", format!("blue {node} $(COLOUR)")),
            ("echo $S_motto", "per aspera".to_owned()),
            ("cat /settings/motto; echo", "per aspera".to_owned()),
            ("cat /one; echo", "per aspera".to_owned()),
            (
                "cat /key/password; stat -L -c \" %a\" /key/password",
                "swordfish 400".to_owned(),
            ),
            ("cat /about/labels; echo", "tier=\"front\"".to_owned()),
            ("touch /scratch/x && ls /scratch", "x".to_owned()),
            ("test -x /host/hpk-kubelet && echo yes", "yes".to_owned()),
            (
                "touch /host/x 2>/dev/null || echo refused",
                "refused".to_owned(),
            ),
            ("hostname", "fed".to_owned()),
            (
                "wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token | awk \"{print (\\$1 > 100)}\"",
                "1".to_owned(),
            ),
            (
                "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo",
                namespace.to_owned(),
            ),
            ("echo ${KUBERNETES_SERVICE_HOST:+set}", "set".to_owned()),
        ];
        for (script, value) in expected {
            let answer = cluster
                .exec(namespace, "fed", &format!("sh -c '{script}'"))
                .success()?;
            ensure!(
                answer.trim_end() == value,
                "{script}: {answer:?} instead of {value:?}"
            );
        }
        Ok(())
    })
}

pub fn init_containers_run_in_order_before_the_app(context: &mut Context) -> Result<()> {
    in_namespace(context, "init", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: one, image: "busybox:1.37", command: [sh, -c, "echo one >> /w/log"], volumeMounts: [{name: w, mountPath: /w}]}
  - {name: two, image: "busybox:1.37", command: [sh, -c, "echo two >> /w/log"], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - {name: app, image: "busybox:1.37", command: [cat, /w/log], volumeMounts: [{name: w, mountPath: /w}]}
  volumes: [{name: w, emptyDir: {}}]
"#,
        )?;
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.phase}'=Succeeded pod/ordered",
            60,
        )?;
        let log = cluster
            .kubectl(&format!("-n {namespace} logs ordered"))
            .success()?;
        ensure!(log == "one\ntwo\n", "the app saw {log:?}");
        Ok(())
    })
}

pub fn the_default_seccomp_profile_and_one_of_the_users_confine_a_pod(
    context: &mut Context,
) -> Result<()> {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let write = format!(
        "umask 077; mkdir -p ~/.hpk/seccomp && echo '{profile}' >~/.hpk/seccomp/no-mkdir.json"
    );
    context.testbed.on("hpc", "login", write).success()?;
    in_namespace(context, "seccomp", |cluster, namespace| {
        let pod = |name: &str, profile: &str| {
            format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{seccompProfile: {profile}}}
  containers:
  - {{name: app, image: "busybox:1.37", command: [sh, -c, "trap exit TERM; while :; do sleep 0.2; done"]}}
"#
            )
        };
        let local = "{type: Localhost, localhostProfile: no-mkdir.json}";
        for (name, profile) in [
            ("default", "{type: RuntimeDefault}"),
            ("local", local),
            ("free", "{type: Unconfined}"),
        ] {
            cluster.apply(namespace, &pod(name, profile))?;
        }
        cluster.wait(namespace, "--for=condition=Ready pod --all", 60)?;
        let mode = |name: &str| {
            let read = "grep -w Seccomp: /proc/1/status";
            let line = cluster.exec(namespace, name, read).success()?;
            Ok::<_, anyhow::Error>(
                line.split_whitespace()
                    .last()
                    .unwrap_or_default()
                    .to_owned(),
            )
        };
        // Filtered is 2 (proc_pid_status(5)).
        for (name, wanted) in [("default", "2"), ("local", "2"), ("free", "0")] {
            let seen = mode(name)?;
            ensure!(seen == wanted, "pod {name} has seccomp mode {seen}");
        }
        cluster
            .exec(namespace, "default", "mkdir /tmp/x")
            .success()?;
        let refused = cluster.exec(namespace, "local", "mkdir /tmp/x").output()?;
        ensure!(
            refused.status != 0 && refused.stderr.contains("not permitted"),
            "the user's profile lets mkdir pass: {refused:?}"
        );
        Ok(())
    })
}

pub fn a_job_completes(context: &mut Context) -> Result<()> {
    in_namespace(context, "job", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  completions: 3
  parallelism: 3
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: sum, image: "busybox:1.37", command: [sh, -c, "echo $((6 * 7))"]}
"#,
        )?;
        cluster.wait(namespace, "--for=condition=Complete job/sum", 90)?;
        let log = cluster
            .kubectl(&format!("-n {namespace} logs -l job-name=sum"))
            .success()?;
        ensure!(log == "42\n42\n42\n", "the Job's pods wrote {log:?}");
        Ok(())
    })
}

pub fn a_deployment_spreads_and_rolls(context: &mut Context) -> Result<()> {
    in_namespace(context, "deployment", |cluster, namespace| {
        let manifest = |word: &str| {
            format!(
                r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: web}}}}}}
      containers:
      - {{name: web, image: "nginx:1.27", env: [{{name: WORD, value: {word}}}], ports: [{{containerPort: 80}}]}}
"#
            )
        };
        for word in ["first", "second"] {
            cluster.apply(namespace, &manifest(word))?;
            cluster.roll_out(namespace, "deployment/web", 90)?;
        }
        let words = cluster
            .kubectl(&format!(
                "-n {namespace} exec deployment/web -- sh -c 'echo $WORD'"
            ))
            .success()?;
        ensure!(
            words.trim() == "second",
            "after the roll-out a pod has WORD={words:?}"
        );
        Ok(())
    })
}

pub fn a_failing_container_is_restarted_with_back_off(context: &mut Context) -> Result<()> {
    in_namespace(context, "backoff", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, image: "busybox:1.37", command: [sh, -c, "exit 9"]}
"#,
        )?;
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=CrashLoopBackOff pod/failing",
            60,
        )?;
        let code = cluster.value(
            namespace,
            "pod/failing",
            "{.status.containerStatuses[0].lastState.terminated.exitCode}",
        )?;
        ensure!(code == "9", "the last exit code is {code:?}");
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.containerStatuses[0].restartCount}'=2 pod/failing",
            60,
        )
    })
}

/// 42 the first time, and 3 then: only the first is to be tried again.
const RULED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: ruled}
spec:
  restartPolicy: Never
  containers:
  - name: app
    image: "busybox:1.37"
    command: [sh, -c, "test -e /data/f && exit 3; touch /data/f; exit 42"]
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#;

pub fn a_rule_restarts_a_container_by_its_exit_code(context: &mut Context) -> Result<()> {
    in_namespace(context, "rules", |cluster, namespace| {
        cluster.apply(namespace, RULED)?;
        let failed = "--for=jsonpath='{.status.phase}'=Failed pod/ruled";
        cluster.wait(namespace, failed, 60)?;
        let status = &cluster.json(&format!("-n {namespace} get pod ruled"))?["status"];
        let container = &status["containerStatuses"][0];
        ensure!(
            container["restartCount"] == 1 && container["state"]["terminated"]["exitCode"] == 3,
            "{container}"
        );
        Ok(())
    })
}

/// As the node lifecycle controller does where a node seems to be gone.
const NOT_READY: &str = r#"{"status":{"conditions":[{"type":"Ready","status":"False"}]}}"#;

pub fn a_pod_that_another_says_is_not_ready_is_ready_again(context: &mut Context) -> Result<()> {
    in_namespace(context, "overwritten", |cluster, namespace| {
        cluster
            .kubectl(&format!(
                "-n {namespace} run told --image=busybox:1.37 -- sleep 86400"
            ))
            .success()?;
        cluster.wait(namespace, "--for=condition=Ready pod/told", 60)?;
        let patched = cluster
            .kubectl(&format!(
                "-n {namespace} patch pod told --subresource=status -o json -p '{NOT_READY}'"
            ))
            .success()?;
        ensure!(is_ready(&patched)? == Some(false), "{patched}");
        cluster.wait(namespace, "--for=condition=Ready pod/told", 30)
    })
}

/// Ends within a second of being told to.
const BRIEF: &str = r#"{"spec":{"terminationGracePeriodSeconds":1}}"#;

pub fn a_pod_that_another_says_has_failed_ends(context: &mut Context) -> Result<()> {
    in_namespace(context, "said-failed", |cluster, namespace| {
        let run = format!(
            "-n {namespace} run told --image=busybox:1.37 --overrides='{BRIEF}' -- sleep 86400"
        );
        cluster.kubectl(&run).success()?;
        cluster.wait(namespace, "--for=condition=Ready pod/told", 60)?;
        let failed = r#"{"status":{"phase":"Failed","reason":"Said"}}"#;
        let patch = format!("-n {namespace} patch pod told --subresource=status -p '{failed}'");
        cluster.kubectl(&patch).success()?;
        let ended = "--for=jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}'=137 pod/told";
        cluster.wait(namespace, ended, 60)?;
        let pod = cluster.json(&format!("-n {namespace} get pod told"))?;
        let status = &pod["status"];
        ensure!(
            status["phase"] == "Failed" && status["reason"] == "Said",
            "{status}"
        );
        Ok(())
    })
}

fn is_ready(pod: &str) -> Result<Option<bool>> {
    let pod: serde_json::Value = serde_json::from_str(pod)?;
    let conditions = pod["status"]["conditions"].as_array();
    let mut all = conditions.into_iter().flatten();
    Ok(all
        .find(|condition| condition["type"] == "Ready")
        .map(|condition| condition["status"] == "True"))
}

pub fn a_pod_ends_within_its_grace_period(context: &mut Context) -> Result<()> {
    in_namespace(context, "grace", |cluster, namespace| {
        let pod = |name: &str, trap: &str, grace: u32| {
            format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: {grace}
  containers:
  - {{name: app, image: "busybox:1.37", command: [sh, -c, "trap '{trap}' TERM; while :; do sleep 0.1; done"]}}
"#
            )
        };
        let end = |name: &str| -> Result<Duration> {
            let start = Instant::now();
            cluster
                .kubectl(&format!("-n {namespace} delete pod {name} --timeout=60s"))
                .limit(70)
                .success()?;
            Ok(start.elapsed())
        };
        cluster.apply(namespace, &pod("polite", "exit 0", 30))?;
        cluster.apply(namespace, &pod("stubborn", ":", 3))?;
        cluster.wait(
            namespace,
            "--for=condition=Ready pod/polite pod/stubborn",
            60,
        )?;
        let polite = end("polite")?;
        ensure!(
            polite < Duration::from_secs(8),
            "a pod that heeds SIGTERM took {polite:?}"
        );
        let stubborn = end("stubborn")?;
        ensure!(
            stubborn > Duration::from_secs(2) && stubborn < Duration::from_secs(10),
            "a pod that ignores SIGTERM with 3 s of grace took {stubborn:?}"
        );
        Ok(())
    })
}

pub fn an_unready_pod_gets_no_traffic(context: &mut Context) -> Result<()> {
    in_namespace(context, "ready", |cluster, namespace| {
        cluster.apply(
            namespace,
            r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: busybox:1.37
    command: [sh, -c, "mkdir /www; echo hello > /www/index.html; httpd -f -p 8080 -h /www"]
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#,
        )?;
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.phase}'=Running pod/web",
            60,
        )?;
        let ready = "{.items[0].endpoints[0].conditions.ready}";
        let slices = "endpointslices -l kubernetes.io/service-name=web";
        cluster.wait(
            namespace,
            &format!("--for=jsonpath='{{.endpoints[0].conditions.ready}}'=false {slices}"),
            30,
        )?;
        cluster
            .exec(namespace, "web", "touch /tmp/ready")
            .success()?;
        cluster.wait(namespace, "--for=condition=Ready pod/web", 30)?;
        cluster.wait(
            namespace,
            &format!("--for=jsonpath='{{.endpoints[0].conditions.ready}}'=true {slices}"),
            30,
        )?;
        let state = cluster.value(namespace, slices, ready)?;
        ensure!(state == "true", "the endpoint's readiness is {state:?}");
        Ok(())
    })
}

pub fn an_ephemeral_container_sees_its_targets_processes(context: &mut Context) -> Result<()> {
    in_namespace(context, "debug", |cluster, namespace| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
            containers: [{name: main, image: \"busybox:1.37\", command: [sleep, \"4242\"]}]\n";
        cluster.apply(namespace, pod)?;
        cluster.wait(namespace, "--for=condition=Ready pod/p", 60)?;
        cluster
            .kubectl(&format!(
                "-n {namespace} debug p -q --image=busybox:1.37 --target=main -c debugger -- ps -o args"
            ))
            .success()?;
        let ended = "--for=jsonpath='{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}'=0 pod/p";
        cluster.wait(namespace, ended, 60)?;
        let log = cluster
            .kubectl(&format!("-n {namespace} logs p -c debugger"))
            .success()?;
        ensure!(log.contains("sleep 4242"), "the debugger saw {log:?}");
        Ok(())
    })
}
