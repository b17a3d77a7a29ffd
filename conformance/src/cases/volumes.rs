//! Volumes that are more than a pod's own files, and who may read them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, in_namespace};
use crate::wait;

const CLAIMED: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: node1}
  securityContext: {runAsUser: 1000}
  containers:
  - {name: c, image: "busybox:1.37", command: [sh, -c, "echo written > /data/file; sleep 3600"],
     volumeMounts: [{name: d, mountPath: /data}], readinessProbe: {exec: {command: [test, -s, /data/file]}, periodSeconds: 1}}
  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: node2}
  containers:
  - {name: c, image: "busybox:1.37", command: [sleep, "3600"], volumeMounts: [{name: d, mountPath: /data}]}
  volumes: [{name: d, persistentVolumeClaim: {claimName: data, readOnly: true}}]
"#;

pub fn a_claim_gets_a_folder_of_the_home_which_goes_with_it(context: &mut Context) -> Result<()> {
    in_namespace(context, "claim", |cluster, namespace| {
        cluster.apply(namespace, CLAIMED)?;
        cluster.wait(namespace, "--for=condition=Ready pod --all", 90)?;
        let read = cluster
            .exec(namespace, "reader", "cat /data/file")
            .success()?;
        ensure!(read == "written\n", "the other node's pod read {read:?}");
        let refused = cluster
            .exec(namespace, "reader", "touch /data/x")
            .output()?;
        ensure!(refused.status != 0, "a read-only claim was written to");
        let volume = cluster.value(namespace, "pvc/data", "{.spec.volumeName}")?;
        cluster
            .kubectl(&format!(
                "-n {namespace} delete pod,pvc --all --timeout=60s"
            ))
            .limit(90)
            .success()?;
        let what = format!("volume {volume} and its folder to be gone");
        wait::until(&what, Duration::from_secs(30), || {
            let left = cluster
                .kubectl(&format!(
                    "get pv {volume} --ignore-not-found -o name; ls ~/.hpk/volumes/{}",
                    cluster.job
                ))
                .success()?;
            Ok(if left.contains(&volume) || left.contains("claim_data") {
                Err(left)
            } else {
                Ok(())
            })
        })
    })
}

const OTHER_USER: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {motto: "per aspera"}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 1000}
  containers:
  - name: c
    image: busybox:1.37
    command: [sh, -ec, "cat /settings/a/motto /etc/hosts /etc/resolv.conf /etc/hostname /bin-of-an-image/etc/passwd > /dev/null; umask"]
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: image, mountPath: /bin-of-an-image}
  volumes:
  - {name: settings, configMap: {name: settings, items: [{key: motto, path: a/motto}]}}
  - {name: image, image: {reference: "busybox:1.37", pullPolicy: IfNotPresent}}
"#;

pub fn another_user_than_root_reads_what_its_pod_is_given(context: &mut Context) -> Result<()> {
    in_namespace(context, "other-user", |cluster, namespace| {
        cluster.apply(namespace, OTHER_USER)?;
        let ended = "--for=jsonpath='{.status.containerStatuses[0].state.terminated}' pod/other";
        cluster.wait(namespace, ended, 60)?;
        let log = cluster
            .kubectl(&format!("-n {namespace} logs other"))
            .success()?;
        // The job's own umask is 0077.
        ensure!(
            log == "0022\n",
            "it could not read, or has a strange umask: {log}"
        );
        Ok(())
    })
}
