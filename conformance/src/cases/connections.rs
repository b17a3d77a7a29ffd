//! `kubectl attach` and `kubectl port-forward`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Context, in_namespace};
use crate::terminal::Terminal;

/// Answers each line of its stdin, which ends with the first caller's; then it ends, too.
const ECHOER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echoer}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: echoer
    image: busybox:1.37
    stdin: true
    stdinOnce: true
    command:
    - sh
    - -c
    - |
      echo "before anybody came"
      while read line; do echo "got $line"; echo "about $line" >&2; done
      echo "all read"; exit 0
"#;

pub fn attach_carries_input_and_output_of_the_containers_own_process(
    context: &mut Context,
) -> Result<()> {
    in_namespace(context, "attach", |cluster, namespace| {
        cluster.apply(namespace, ECHOER)?;
        cluster.wait(namespace, "--for=condition=Ready pod/echoer", 60)?;
        let lines: String = (0..500).map(|number| format!("line {number}\n")).collect();
        let output = cluster
            .kubectl(&format!("-n {namespace} attach -i echoer"))
            .input(lines)
            .output()?;
        let expected: String = (0..500)
            .map(|number| format!("got line {number}\n"))
            .collect();
        ensure!(
            output.stdout == format!("{expected}all read\n"),
            "standard output differs: {:?}",
            output.stdout
        );
        ensure!(
            output.stderr.contains("about line 499\n"),
            "standard error is {:?}",
            output.stderr
        );
        // The caller's end of input was the container's.
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.phase}'=Succeeded pod/echoer",
            30,
        )
    })
}

const SHELL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: "busybox:1.37", stdin: true, tty: true, command: [sh]}
"#;

pub fn attach_has_the_containers_terminal(context: &mut Context) -> Result<()> {
    in_namespace(context, "attach-tty", |cluster, namespace| {
        cluster.apply(namespace, SHELL)?;
        cluster.wait(namespace, "--for=condition=Ready pod/shell", 60)?;
        let limit = Duration::from_secs(20);
        let attach = || {
            let command = cluster
                .kubectl(&format!("-n {namespace} attach -it shell"))
                .command();
            Terminal::start(command, 33, 99)
        };
        let mut terminal = attach()?;
        terminal.type_line("seen=first; echo here-$((1+0))")?;
        terminal.expect("here-1\r", limit)?;
        terminal.type_line(
            "while [ \"$(stty size)\" != '33 99' ]; do usleep 50000; done; echo size-$((1+0))",
        )?;
        terminal.expect("size-1\r", limit)?;
        terminal.resize(44, 111)?;
        terminal.type_line(
            "while [ \"$(stty size)\" != '44 111' ]; do usleep 50000; done; echo size-$((1+1))",
        )?;
        terminal.expect("size-2\r", limit)?;
        // A caller goes, as one whose connection breaks does; the shell stays, for the next one.
        drop(terminal);
        let mut terminal = attach()?;
        terminal.type_line("echo $seen-$((1+1))")?;
        terminal.expect("first-2\r", limit)?;
        terminal.type_line("exit 0")?;
        let code = terminal.exit_code(limit)?;
        ensure!(code == 0, "exit {code} instead of 0");
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.phase}'=Succeeded pod/shell",
            30,
        )
    })
}

/// Two HTTP servers that listen on the pod's loopback alone, where nobody but a port-forward gets. They have a page, a
/// large file with its sum beside it, and a program that sums up what is sent.
const SERVERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: servers}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: servers
    image: busybox:1.37
    command:
    - sh
    - -c
    - |
      mkdir -p /www/cgi-bin; cd /www
      echo "page of $HOSTNAME" > index.html
      head -c 16000000 /dev/urandom > big; sha256sum < big > big.sum
      cat > cgi-bin/sum <<'END'
      #!/bin/sh
      printf 'Content-Type: text/plain\r\n\r\n'
      head -c "$CONTENT_LENGTH" | sha256sum
      END
      chmod 755 cgi-bin/sum
      httpd -p 127.0.0.1:7000 -h /www
      exec httpd -f -p 127.0.0.1:8080 -h /www
    readinessProbe: {exec: {command: [wget, -qO-, "http://127.0.0.1:8080/"]}, periodSeconds: 1}
"#;

/// Forwards PORTS of the pod, waits until `$a` and `$b` are the local ends of the first two, and runs the rest.
fn forward(kubectl: &str, ports: &str, then: &str) -> String {
    format!(
        r#"
set -eu
work=$(mktemp -d); trap 'kill $forward || true; wait $forward || true; rm -r "$work"' EXIT
{kubectl} {ports} >"$work/out" 2>&1 & forward=$!
local_of() {{ sed -n "s/^Forwarding from 127.0.0.1:\([0-9]*\) -> $1\$/\1/p" "$work/out"; }}
for port in $(echo '{ports}' | tr -d :); do
    until [ -n "$(local_of "$port")" ]; do kill -0 $forward || {{ cat "$work/out"; exit 1; }}; sleep 0.1; done
done
{then}
"#
    )
}

pub fn port_forward_carries_traffic_to_a_pods_own_loopback(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "forward", |cluster, namespace| {
        cluster.apply(namespace, SERVERS)?;
        cluster.wait(namespace, "--for=condition=Ready pod/servers", 60)?;
        let kubectl = cluster.kubectl_line(&format!("-n {namespace} port-forward pod/servers"));
        let then = r#"
web=http://127.0.0.1:$(local_of 8080); also=http://127.0.0.1:$(local_of 7000)
get() { curl -sS --fail --max-time 60 "$@"; }
up() { # FILE
    [ "$(get --data-binary @"$1" "$also/cgi-bin/sum")" = "$(sha256sum <"$1")" ] && echo "same up"
}
get "$web/"
for n in $(seq 20); do
    head -c 100000 /dev/urandom >"$work/$n"
    up "$work/$n" & jobs="${jobs:-} $!"
done
wait $jobs
head -c 16000000 /dev/urandom >"$work/big"
up "$work/big"
[ "$(get "$web/big" | sha256sum)" = "$(get "$web/big.sum")" ] && echo "same down"
get "$web/"
"#;
        let output = testbed
            .on("hpc", "login", forward(&kubectl, ":8080 :7000", then))
            .limit(90)
            .success()
            .context("forwarding two ports")?;
        let count = |text: &str| output.lines().filter(|line| line.starts_with(text)).count();
        ensure!(
            count("page of servers") == 2,
            "the page came {} times instead of 2:\n{output}",
            count("page of servers")
        );
        ensure!(
            count("same up") == 21 && count("same down") == 1,
            "{} of 21 uploads and {} of 1 download were what was sent:\n{output}",
            count("same up"),
            count("same down")
        );
        Ok(())
    })
}

pub fn port_forward_says_which_port_nobody_listens_on(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "forward-no", |cluster, namespace| {
        cluster.apply(namespace, SERVERS)?;
        cluster.wait(namespace, "--for=condition=Ready pod/servers", 60)?;
        let kubectl = cluster.kubectl_line(&format!("-n {namespace} port-forward pod/servers"));
        let then = r#"
curl -sS --max-time 10 "http://127.0.0.1:$(local_of 9)/" 2>&1 && exit 1
until grep -i refused "$work/out"; do sleep 0.1; done
"#;
        let output = testbed
            .on("hpc", "login", forward(&kubectl, ":9", then))
            .limit(30)
            .success()
            .context("forwarding a port that nobody listens on")?;
        ensure!(
            output.contains("port 9 ") && output.contains("servers"),
            "kubectl does not name port and pod: {output}"
        );
        Ok(())
    })
}
