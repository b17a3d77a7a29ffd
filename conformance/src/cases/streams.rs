//! `kubectl logs` and `kubectl exec`.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Context, in_namespace};
use crate::terminal::Terminal;
use crate::testbed::stop;

/// Writes a line five times a second; ends with exit 3 once somebody makes /tmp/end.
const TALKER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: talker
    image: busybox:1.37
    volumeMounts: [{name: state, mountPath: /state}]
    command:
    - sh
    - -c
    - |
      run=$(cat /state/run 2>/dev/null || echo 1); echo $((run + 1)) > /state/run
      echo "to stderr" >&2; n=0
      while ! [ -e /tmp/end ]; do n=$((n + 1)); echo "run $run line $n"; usleep 200000; done
      echo "run $run last"; exit 3
  volumes: [{name: state, emptyDir: {}}]
"#;

/// How often a log is read over a WebSocket, as dashboards do. It was empty one time in four.
const READS: usize = 40;

/// Reads the log of the pod `brief` so often, and prints how often it was whole.
fn reader(kubectl: &str, namespace: &str) -> String {
    format!(
        r#"
dir=$(mktemp -d)
{kubectl} proxy --unix-socket="$dir/socket" >"$dir/proxy.log" 2>&1 &
proxy=$!
trap 'kill $proxy; rm -r "$dir"' EXIT
ask() {{ curl -s --max-time 10 --http1.1 --unix-socket "$dir/socket" "$@"; }}
until ask -f http://localhost/readyz >/dev/null; do kill -0 $proxy; done
for n in $(seq {READS}); do
  ask -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13'     -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Sec-WebSocket-Protocol: binary.k8s.io'     http://localhost/api/v1/namespaces/{namespace}/pods/brief/log >"$dir/answer" || true
  grep -ac 'said once' "$dir/answer" || true
done | grep -c 1
"#
    )
}

pub fn a_log_is_whole_over_a_websocket(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    in_namespace(context, "websocket", |cluster, namespace| {
        let run = "run brief --image=busybox:1.37 --restart=Never -- echo said once";
        cluster
            .kubectl(&format!("-n {namespace} {run}"))
            .success()?;
        let over = "--for=jsonpath='{.status.phase}'=Succeeded pod/brief";
        cluster.wait(namespace, over, 60)?;
        let script = reader(&cluster.kubectl_line(""), namespace);
        let whole = testbed.on("hpc", "login", script).success()?;
        ensure!(
            whole.trim() == READS.to_string(),
            "{} of {READS} were whole",
            whole.trim()
        );
        Ok(())
    })
}

pub fn logs_follow_tail_since_and_previous(context: &mut Context) -> Result<()> {
    in_namespace(context, "logs", |cluster, namespace| {
        cluster.apply(namespace, TALKER)?;
        cluster.wait(namespace, "--for=condition=Ready pod/talker", 60)?;
        let logs =
            |options: &str| cluster.kubectl(&format!("-n {namespace} logs {options} talker"));

        let mut follow = logs("-f").spawn()?;
        let pipe = follow.stdout.take().context("logs -f has no output")?;
        let lines: Vec<String> = BufReader::new(pipe)
            .lines()
            .take(11)
            .collect::<Result<_, _>>()?;
        stop(follow)?;
        ensure!(
            lines.iter().any(|line| line == "to stderr"),
            "standard error is missing: {lines:?}"
        );
        let numbered: Vec<_> = lines.iter().filter(|line| line.contains("line")).collect();
        for (index, line) in numbered.iter().enumerate() {
            ensure!(
                **line == format!("run 1 line {}", index + 1),
                "a line is lost: {lines:?}"
            );
        }

        let tail = logs("--tail=2").success()?;
        ensure!(tail.lines().count() == 2, "--tail=2 gave {tail:?}");
        let all = logs("").success()?.lines().count();
        let recent = logs("--since=1s").success()?.lines().count();
        ensure!(
            recent > 0 && recent < all,
            "--since=1s gave {recent} of {all} lines"
        );
        let stamped = logs("--tail=1 --timestamps").success()?;
        ensure!(
            stamped.starts_with("20") && stamped.contains("Z run 1"),
            "--timestamps gave {stamped:?}"
        );

        cluster
            .exec(namespace, "talker", "touch /tmp/end")
            .success()?;
        cluster.wait(
            namespace,
            "--for=jsonpath='{.status.containerStatuses[0].restartCount}'=1 pod/talker",
            60,
        )?;
        let previous = logs("--previous --tail=1").success()?;
        ensure!(
            previous.trim() == "run 1 last",
            "--previous gave {previous:?}"
        );
        let code = cluster.value(
            namespace,
            "pod/talker",
            "{.status.containerStatuses[0].lastState.terminated.exitCode}",
        )?;
        ensure!(code == "3", "the last exit code is {code:?}");
        Ok(())
    })
}

const IDLE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: idle}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: idle, image: "busybox:1.37", command: [sleep, "3600"]}
"#;

pub fn exec_passes_streams_and_exit_codes(context: &mut Context) -> Result<()> {
    in_namespace(context, "exec", |cluster, namespace| {
        cluster.apply(namespace, IDLE)?;
        cluster.wait(namespace, "--for=condition=Ready pod/idle", 60)?;
        for code in [0, 1, 7, 126, 255] {
            let output = cluster
                .exec(
                    namespace,
                    "idle",
                    &format!("sh -c 'echo out; echo err >&2; exit {code}'"),
                )
                .output()?;
            ensure!(
                output.status == code,
                "exit {} instead of {code}: {}",
                output.status,
                output.stderr
            );
            ensure!(
                output.stdout == "out\n",
                "standard output is {:?}",
                output.stdout
            );
            ensure!(
                output.stderr.contains("err\n"),
                "standard error is {:?}",
                output.stderr
            );
        }
        let killed = cluster
            .exec(namespace, "idle", "sh -c 'kill -9 $$'")
            .output()?;
        ensure!(
            killed.status == 137,
            "a killed program gave exit {}",
            killed.status
        );

        let big: String = (0..200_000).map(|number| format!("{number}\n")).collect();
        let sum = cluster
            .kubectl(&format!(
                "-n {namespace} exec -i idle -- sh -c 'cat | tee /tmp/big | wc -c; cat /tmp/big'"
            ))
            .input(big.clone())
            .success()?;
        let (count, echoed) = sum.split_once('\n').context("no answer to the input")?;
        ensure!(
            count.trim() == big.len().to_string(),
            "{count} of {} bytes arrived",
            big.len()
        );
        ensure!(
            echoed == big,
            "the bytes that came back differ from those sent"
        );

        let absent = cluster
            .exec(namespace, "idle", "/no/such/program")
            .output()?;
        ensure!(
            absent.status != 0,
            "a program that does not exist gave exit 0"
        );
        ensure!(
            absent.stderr.contains("/no/such/program"),
            "the error does not name it: {}",
            absent.stderr
        );
        Ok(())
    })
}

pub fn exec_has_a_terminal_that_can_be_resized(context: &mut Context) -> Result<()> {
    in_namespace(context, "exec-tty", |cluster, namespace| {
        cluster.apply(namespace, IDLE)?;
        cluster.wait(namespace, "--for=condition=Ready pod/idle", 60)?;
        let limit = Duration::from_secs(20);
        let command = cluster
            .kubectl(&format!("-n {namespace} exec -it idle -- sh"))
            .command();
        let mut terminal = Terminal::start(command, 31, 97)?;
        terminal.expect("# ", limit)?;
        terminal.type_line(
            "while [ \"$(stty size)\" != '31 97' ]; do usleep 50000; done; echo size-$((1+0))",
        )?;
        terminal.expect("size-1\r", limit)?;
        terminal.resize(42, 123)?;
        terminal.type_line(
            "while [ \"$(stty size)\" != '42 123' ]; do usleep 50000; done; echo size-$((1+1))",
        )?;
        terminal.expect("size-2\r", limit)?;
        terminal.type_line("exit 5")?;
        let code = terminal.exit_code(limit)?;
        ensure!(code == 5, "exit {code} instead of 5");
        Ok(())
    })
}
