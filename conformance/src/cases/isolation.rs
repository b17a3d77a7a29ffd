//! What another user of the same hosts can't do.

use std::io::{BufRead as _, BufReader};
use std::process::Child;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, SIZE};
use crate::cluster::{self, Cluster};
use crate::testbed::{self, Testbed};

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

pub fn a_bubbles_key_opens_only_the_networks_part_of_etcd(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    let etcdctl = |arguments: &str| {
        let script = format!(
            "c=~/.hpk/clusters/{}/cluster.json; pki=/var/lib/hpk/pki; \
             apptainer --quiet exec instance://bubble2 etcdctl --command-timeout=5s \
               --endpoints=https://$(jq -r .controller_address $c):$(jq .ports.etcd $c) \
               --cacert=$pki/etcd-ca.crt --cert=$pki/etcd-client.crt --key=$pki/etcd-client.key {arguments}",
            cluster.job
        );
        context.testbed.on("hpc", "node2", script).output()
    };
    let subnets = etcdctl("get --prefix --keys-only /coreos.com/network/subnets")?.success()?;
    ensure!(
        subnets.lines().filter(|key| !key.is_empty()).count() == 3,
        "flannel's leases: {subnets}"
    );
    for arguments in [
        "get --prefix --keys-only --limit=1 /registry/",
        "put /registry/hpk-test x",
        "put /coreos.com/network/config {}",
        "get --prefix --keys-only /",
        "user list",
        "auth disable",
    ] {
        let answer = etcdctl(arguments)?;
        ensure!(
            answer.status != 0 && answer.stderr.contains("permission denied"),
            "etcdctl {arguments} with a bubble's key: {answer:?}"
        );
    }
    Ok(())
}

pub fn every_certificate_ends_soon_after_the_job(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    // The job's time is an hour (SIZE); certificates outlive it by a day.
    let script = format!(
        "cd ~/.hpk/clusters/{}/pki && for file in *.crt; do \
           openssl x509 -noout -checkend 86400 -in $file >/dev/null || echo \"$file ends too soon\"; \
           openssl x509 -noout -checkend 90060 -in $file >/dev/null && echo \"$file ends too late\"; \
           echo seen; done; true",
        cluster.job
    );
    let said = context.testbed.on("hpc", "login", script).success()?;
    let faults: Vec<_> = said.lines().filter(|line| *line != "seen").collect();
    ensure!(faults.is_empty(), "{faults:?}");
    ensure!(said.lines().count() >= 15, "too few certificates: {said}");
    Ok(())
}

/// Takes, until it is ended, whatever a start could want under a name that can be guessed for the
/// jobs from NEXT on: folders, abstract sockets, the usual ports. Perl is on every Debian.
const SQUATTER: &str = r#"
use strict; use Socket;
$| = 1;
my (@sockets, @folders);
sub leave { rmdir for @folders; exit }
$SIG{$_} = \&leave for qw(TERM INT HUP);
sub hold {
    my ($family, $type, $address) = @_;
    socket(my $socket, $family, $type, 0) or die "socket: $!";
    # A cluster that runs may have the port.
    bind($socket, $address) or return;
    $type == SOCK_DGRAM or listen($socket, 1) or die "listen: $!";
    push @sockets, $socket;
}
my @jobs = NEXT .. NEXT + 20;
for my $name ("hpk-instance-1000", map { "hpk-ports-1000-$_" } @jobs) {
    hold(AF_UNIX, SOCK_STREAM, pack_sockaddr_un("\0$name"));
}
hold(AF_INET, SOCK_STREAM, pack_sockaddr_in($_, INADDR_ANY)) for 6443, 2379, 10250, 17900;
hold(AF_INET, SOCK_DGRAM, pack_sockaddr_in(8472, INADDR_ANY));
for my $name ("images", "hosts", @jobs, map { "$_-launch" } @jobs) {
    mkdir "/tmp/hpk-1000-$name", 0777 or next;
    push @folders, "/tmp/hpk-1000-$name";
}
print scalar(@sockets), " ", scalar(@folders), "\n";
sleep 1 while 1;
"#;

/// Starts it as eve, and waits until it has all that is to be had.
fn squat(testbed: &Testbed, host: &str, next: u64) -> Result<Child> {
    let program = SQUATTER.replace("NEXT", &next.to_string());
    let script = format!("exec perl -e '{}'", program.replace('\'', "'\\''"));
    let mut child = testbed.on("eve", host, script).limit(200).spawn()?;
    let mut line = String::new();
    if let Some(output) = &mut child.stdout {
        BufReader::new(output).read_line(&mut line)?;
    }
    let counts: Vec<u32> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    if matches!(counts[..], [sockets, folders] if sockets >= 20 && folders >= 20) {
        return Ok(child);
    }
    testbed::stop(child)?;
    bail!("eve could only take {line:?} on {host}")
}

pub fn another_user_who_takes_every_guessable_name_stops_no_start(
    context: &mut Context,
) -> Result<()> {
    let testbed = context.testbed.clone();
    // Every user may see the next job's number.
    let submit = "sbatch --parsable --hold --output=/dev/null --wrap=true";
    let script = format!("job=$({submit}) && scancel $job && echo $job");
    let last: u64 = testbed
        .on("eve", "login", script)
        .success()?
        .trim()
        .parse()?;
    let mut squatters = Vec::new();
    let mut result = Ok(());
    for host in ["node1", "node2", "node3"] {
        match squat(&testbed, host, last + 1) {
            Ok(child) => squatters.push(child),
            Err(error) => result = Err(error),
        }
    }
    let started = result.and_then(|()| {
        let cluster = Cluster::start(&testbed, 3, SIZE)?;
        let log = cluster::log(&testbed, "hpc", &cluster.job);
        cluster.cancel()?;
        Ok((cluster, log?))
    });
    for child in squatters {
        testbed::stop(child)?;
    }
    let (cluster, log) = started?;
    super::jobs::gone(&testbed, &cluster.job)?;
    for word in ["warning", "another user", "belongs to"] {
        ensure!(!log.contains(word), "the start says {word:?}:\n{log}");
    }
    Ok(())
}

/// Asks the relay in the working directory for its counters.
const ASK: &str = r#"use Socket; $SIG{PIPE} = "IGNORE"; $| = 1;
socket(S, AF_UNIX, SOCK_SEQPACKET, 0) && connect(S, sockaddr_un("relay.sock")) or die "connect: $!";
print "connected "; send(S, qq({"op":"status"}), 0); recv(S, $answer, 65536, 0); print $answer;"#;

/// Listens as a relay would, and prints how many bytes the first one said who came.
const POSE: &str = r#"use Socket; $| = 1; mkdir "FOLDER"; mkdir "FOLDER/relay";
socket(L, AF_UNIX, SOCK_SEQPACKET, 0) && bind(L, sockaddr_un("FOLDER/relay/relay.sock")) && listen(L, 5)
    && chmod(0777, "FOLDER/relay/relay.sock") or die "listen: $!";
print "listening\n"; accept(C, L); recv(C, $said, 65536, 0); print length($said), "\n";"#;

/// The folder and the socket are their owner's alone. Here both are opened, so that what is left
/// is the relay's own look at who asks.
pub fn another_user_gets_nothing_from_the_relay(context: &mut Context) -> Result<()> {
    let cluster = context.cluster()?;
    let folder = format!("{}/cni/relay", cluster.local_folder("node1")?);
    let ask = |user: &str| {
        let script = format!(
            "set -e; cd {folder}; trap 'chmod 700 .; chmod 600 relay.sock' EXIT
             chmod 711 .; chmod 666 relay.sock
             setpriv --reuid {user} --regid {user} --init-groups perl -e '{ASK}'"
        );
        context.testbed.on("root", "node1", script).success()
    };
    let own = ask("hpc")?;
    ensure!(own.contains("text"), "its owner got {own:?}");
    let eve = ask("eve")?;
    ensure!(eve == "connected ", "eve got {eve:?}");
    Ok(())
}

pub fn another_user_cannot_pose_as_the_relay(context: &mut Context) -> Result<()> {
    let testbed = &context.testbed;
    let folder = "/tmp/eve-poses";
    let program = POSE.replace("FOLDER", folder);
    let script = format!("rm -rf {folder}; exec perl -e '{program}'");
    let mut eve = testbed.on("eve", "node1", script).spawn()?;
    let mut said = BufReader::new(eve.stdout.take().context("no output of eve's")?).lines();
    let result = (|| {
        let first = said.next().transpose()?;
        ensure!(first.as_deref() == Some("listening"), "eve: {first:?}");
        let status = format!("/hpk/bin/hpk-net-daemon relay status --data-dir {folder}");
        let asked = testbed.on("hpc", "node1", status).output()?;
        ensure!(
            asked.status != 0
                && asked
                    .stderr
                    .contains("the other side of the socket is user"),
            "hpc was answered: {asked:?}"
        );
        let heard = said.next().transpose()?;
        ensure!(heard.as_deref() == Some("0"), "eve heard {heard:?} bytes");
        Ok(())
    })();
    testbed::stop(eve)?;
    testbed
        .on("eve", "node1", format!("rm -rf {folder}"))
        .success()?;
    result
}
