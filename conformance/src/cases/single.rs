//! A user without subordinate ids: single-id mode, in which root, which is the user, is all there is.

use anyhow::{Result, ensure};

use super::refusals::event;
use super::{Context, SIZE, jobs};
use crate::cluster::{self, Cluster};

const USER: &str = "nosub";

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  securityContext: {fsGroup: 2000}
  containers:
  - {name: app, image: "busybox:1.37", command: [sleep, "3600"], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  containers: [{name: app, image: "busybox:1.37", command: [sleep, "3600"], securityContext: {runAsUser: 1000}}]
---
apiVersion: v1
kind: Pod
metadata: {name: images-own}
spec:
  containers: [{name: app, image: "registry.k8s.io/e2e-test-images/nonroot:1.5"}]
---
apiVersion: v1
kind: Pod
metadata: {name: squashed, annotations: {slurm.hpk.io/squash-ids: "true"}}
spec:
  securityContext: {runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true}
  containers: [{name: app, image: "busybox:1.37", command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}, annotations: {slurm.hpk.io/squash-ids: "true"}}
spec:
  containers: [{name: app, image: "nginx:1.27", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

pub fn a_user_without_subuids_has_a_cluster_on_which_root_is_the_only_user(
    context: &mut Context,
) -> Result<()> {
    let cluster = Cluster::start_as(&context.testbed, USER, 2, SIZE)?;
    let shown = says_so(context, &cluster).and_then(|()| runs_pods(&cluster));
    cluster.cancel()?;
    shown?;
    jobs::gone(&context.testbed, &cluster.job)
}

fn says_so(context: &Context, cluster: &Cluster) -> Result<()> {
    let log = cluster::log(&context.testbed, USER, &cluster.job)?;
    ensure!(
        log.contains("single-id mode") && log.contains("/etc/subuid"),
        "the job does not say the mode:\n{log}"
    );
    let path = r#"{.items[*].status.conditions[?(@.type=="SingleId")].status}"#;
    let conditions = cluster.value("default", "nodes -l hpk.io/single-id=true", path)?;
    ensure!(
        conditions == "True True",
        "nodes' conditions: {conditions:?}"
    );
    Ok(())
}

fn runs_pods(cluster: &Cluster) -> Result<()> {
    let namespace = cluster.namespace("single")?;
    cluster.apply(&namespace, PODS)?;
    cluster.wait(
        &namespace,
        "--for=condition=Ready pod/plain pod/squashed pod/web",
        90,
    )?;
    let exec = |pod: &str, command: &str| cluster.exec(&namespace, pod, command);
    let id = exec(
        "plain",
        "sh -c 'id; touch /data/x; rm -r /home; ls -ln /data/x'",
    )
    .success()?;
    ensure!(
        id.starts_with("uid=0(root) gid=0(root)") && !id.contains("65534"),
        "in a pod of root: {id:?}"
    );
    let chown = exec("plain", "chown 5 /data/x").output()?;
    ensure!(
        chown.status != 0 && chown.stderr.contains("Invalid argument"),
        "chown to an id that isn't there: {chown:?}"
    );
    let page = exec(
        "plain",
        "wget -qO- -T 10 http://web.single.svc.cluster.local/",
    )
    .success()?;
    ensure!(!page.is_empty(), "the Service gave nothing");
    event(cluster, &namespace, "plain", &["FsGroupNotMapped", "2000"])?;

    let words = [
        "Failed",
        "user 1000",
        "no subordinate ids",
        "slurm.hpk.io/squash-ids",
    ];
    event(cluster, &namespace, "other", &words)?;
    event(cluster, &namespace, "images-own", &["Failed", "user 1234"])?;
    cluster.wait(
        &namespace,
        "--for=jsonpath='{.status.containerStatuses[0].state.waiting.reason}'=CreateContainerConfigError \
         pod/other pod/images-own",
        30,
    )?;

    event(
        cluster,
        &namespace,
        "squashed",
        &["IdsSquashed", "user 1000"],
    )?;
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let squashed = exec(
        "squashed",
        &format!("sh -c 'id -u; test -s {token}; chown 5:5 /tmp; stat -c %u /tmp'"),
    );
    let squashed = squashed.success()?;
    ensure!(squashed == "0\n0\n", "in a squashed pod: {squashed:?}");
    Ok(())
}
