//! What another user of the same hosts can't do.

use anyhow::{Result, ensure};

use super::Context;

/// Files under ~/.hpk that others may read: docs/files.md says why each.
const LISTED: &[&str] = &[];

pub fn another_user_reads_nothing_of_the_cluster(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    for host in ["node1", "node2", "node3", "login"] {
        let found = context
            .testbed
            .on(
                "eve",
                host,
                format!(
                    "for p in /home/hpc/.hpk /home/hpc/.hpk/* /home/hpc/.hpk/clusters/{job} /tmp/hpk-* /tmp/hpk-*/* \
                     /proc/[0-9]*/environ; do \
                     owner=$(stat -c %U \"$p\" 2>/dev/null) || continue; [ \"$owner\" = eve ] && continue; \
                     case $p in /proc/*) cat \"$p\" >/dev/null 2>&1 ;; *) ls \"$p\" >/dev/null 2>&1 ;; esac && echo \"$p $owner\"; done; true",
                    job = cluster.job
                ),
            )
            .success()?;
        ensure!(found.is_empty(), "eve reads on {host}:\n{found}");
    }
    Ok(())
}

pub fn another_user_sees_no_secret_in_the_process_list(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    let namespace = cluster.namespace("secret-args")?;
    let result = (|| {
        cluster.apply(
            &namespace,
            r#"
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: hushhush4711}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: keeper
    image: busybox:1.37
    command: [sleep, "3600"]
    env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}]
"#,
        )?;
        cluster.wait(&namespace, "--for=condition=Ready pod/keeper", 60)?;
        let inside = cluster
            .exec(&namespace, "keeper", "sh -c 'echo $PASSWORD'")
            .success()?;
        ensure!(
            inside.trim() == "hushhush4711",
            "the pod itself has {inside:?}"
        );
        for host in ["node1", "node2", "node3"] {
            let listed = context
                .testbed
                .on("eve", host, "ps axww -o args")
                .success()?;
            ensure!(
                !listed.contains("hushhush4711"),
                "the secret stands in the process list of {host}"
            );
            ensure!(
                !listed.contains("BEGIN"),
                "a key stands in the process list of {host}"
            );
        }
        Ok(())
    })();
    cluster.remove_namespace(&namespace)?;
    result?;
    Ok(())
}

pub fn another_user_cannot_use_the_ports(context: &mut Context) -> Result<()> {
    context.cluster()?;
    for host in ["node1", "node2", "node3"] {
        // Every TCP port that listens on the host beyond Slurm, munge and ssh: HTTPS
        // without a client certificate must get no answer but a refusal.
        let answers = context
            .testbed
            .on(
                "eve",
                host,
                "for port in $(ss -Hltn | awk '{n = split($4, a, \":\"); print a[n]}' | sort -un); do \
                   case $port in 22|6817|6818|111) continue ;; esac; \
                   code=$(curl -sk -o /tmp/answer-$$ -w '%{http_code}' --max-time 5 https://127.0.0.1:$port/api/v1/secrets); \
                   plain=$(curl -s -o /dev/null -w '%{http_code}' --max-time 5 http://127.0.0.1:$port/v3/kv/range -d '{}'); \
                   echo \"$port $code $plain\"; done; rm -f /tmp/answer-$$",
            )
            .limit(120)
            .success()?;
        for line in answers.lines() {
            let codes: Vec<_> = line.split_whitespace().collect();
            ensure!(
                codes.len() == 3
                    && matches!(codes[1], "000" | "401" | "403")
                    && matches!(codes[2], "000" | "400" | "404"),
                "{host} answers eve on port {line} (port, https code, http code)"
            );
        }
    }
    Ok(())
}

pub fn only_listed_files_are_readable_by_others(context: &mut Context) -> Result<()> {
    context.cluster()?;
    let open = context
        .testbed
        .on(
            "hpc",
            "login",
            "find ~/.hpk ! -type l -perm /077 -printf '%P %m\\n'",
        )
        .success()?;
    let unlisted: Vec<_> = open
        .lines()
        .filter(|line| !LISTED.iter().any(|listed| line.starts_with(listed)))
        .collect();
    ensure!(
        unlisted.is_empty(),
        "readable by group or others, and not listed: {unlisted:?}"
    );
    Ok(())
}
