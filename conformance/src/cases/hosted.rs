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

fn on_bare_host<'a>(testbed: &'a Testbed, script: &str) -> Exec<'a> {
    let script = format!("set -e; hpktainer() {{ /hpk/bin/hpktainer \"$@\"; }}; {script}");
    testbed.on("hpc", "login", script).limit(90)
}

/// Processes, folders and sockets of containers on the bare host; images stay.
fn nothing_is_left_on_the_bare_host(testbed: &Testbed) -> Result<()> {
    wait::until("nothing to be left", Duration::from_secs(30), || {
        let left = on_bare_host(
            testbed,
            "pgrep -au hpc 'hpktainer|pasta|slirp4netns|containerd-shim' || true; \
             for base in /tmp/hpktainer-$(id -u)-*; do \
             find $base/local $base/containers $base/run $base/s -mindepth 1 ! -name start ! -name turn; done",
        )
        .success()?;
        Ok(match left.trim().is_empty() {
            true => Ok(()),
            false => Err(left),
        })
    })
}

pub fn hpktainer_on_a_bare_host_makes_a_bubble_of_its_own(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let said = on_bare_host(
        &testbed,
        &format!(
            "hpktainer run -d --name web -p 127.0.0.1:8088:8000 {IMAGE} \
             sh -c 'echo served >/index.html; echo begun; exec httpd -f -p 8000 -h /' >/dev/null
             page() {{ exec 3<>/dev/tcp/127.0.0.1/8088 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n1 <&3; }}
             until page 2>/dev/null | grep served; do :; done
             ip=$(hpktainer inspect web | sed -n 's/.*\"IPAddress\": \"\\(.*\\)\".*/\\1/p')
             hpktainer run --rm {IMAGE} wget -qO- http://$ip:8000/
             hpktainer run --rm {IMAGE} wget -qO- http://outside.hpk.test/
             hpktainer exec web sh -c 'echo web:x:123:124::/: >>/etc/passwd'
             hpktainer exec -u web web id -u
             hpktainer logs -f web & hpktainer stop -t 0 web >/dev/null; wait $!
             hpktainer ps -a --format json; hpktainer rm web >/dev/null
             code() {{ hpktainer run --rm \"$@\" 2>/dev/null || echo code $?; }}
             code {IMAGE} sh -c 'exit 23'; code {IMAGE} no-such-program; code {IMAGE} /etc/passwd
             code -v /no/such:/x {IMAGE} true
             hpktainer run --rm --net none {IMAGE} sh -c 'ls /sys/class/net'
             export HPK_STORE=$(mktemp -d)
             hpktainer pull -q {IMAGE} >/dev/null
             : >$HPK_STORE/claims; code {IMAGE} true; hpktainer ps -aq; rm $HPK_STORE/claims
             hpktainer images prune; hpktainer images -q; rm -r $HPK_STORE"
        ),
    )
    .success()?;
    let expected = [
        "served",
        "served",
        "hello from outside",
        "123",
        "begun",
        "\"State\":\"exited\"",
        "code 23",
        "code 127",
        "code 126",
        "code 125",
        "lo",
        "code 125",
        "sha256:",
    ];
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == expected.len()
            && lines
                .iter()
                .zip(expected)
                .all(|(line, part)| line.contains(part)),
        "{said}"
    );
    nothing_is_left_on_the_bare_host(&testbed)
}

/// Each line of what is printed is one habit; what has to be found in it stands in [`HABITS_SHOWN`].
const HABITS: &str = r#"
export PATH=/hpk/bin:$PATH
cd $(mktemp -d); mkdir d; echo content >d/f; printf 'A=file\n#c\nB=two words\n' >env
image=busybox:1.37
run() { hpktainer run --rm "$@" 2>&1 | tr '\n' ' '; echo; }
run -e A=1 -e EMPTY= -e NOSUCH --env-file env $image sh -c 'env | grep -cE "^(A=1|EMPTY=|B=two words|HOSTNAME=.+)$"; env | grep -c NOSUCH'
run -v ./d:/x $image cat /x/f
run -v d:/x $image true
run -v ./nosuch:/x $image true
run -w /new/dir $image pwd
run -w rel $image true
run -u 1234:555 $image id
run -u daemon $image id -un
run -u nosuch $image true
run --entrypoint "" $image echo bare
run --entrypoint echo $image -p 7000 -d -- --help
mkdir -p root/bin root/etc; ln -s ../run/systemd/resolve/stub-resolv.conf root/etc/resolv.conf
run -v /hpk/bin:/p:ro ./root /p/hpk-pause --version
echo piped | run -i $image cat
hpktainer run --name one $image false || echo "one: $?"
hpktainer run --name one $image true 2>&1 || echo "again: $?"
hpktainer run -d --name two -p 8089:80 $image sh -c 'echo out; echo err >&2; trap "exit 5" USR1; while :; do sleep 0.1; done' >/dev/null
run -p 8089:80 $image true
hpktainer run -dit --name three $image sh >/dev/null
hpktainer exec three readlink /proc/1/fd/0
hpktainer exec -w /tmp -e X=1 -u daemon two sh -c 'echo $(pwd) $(id -un) $X'
hpktainer exec two nosuch 2>/dev/null || echo "exec: $?"
until [ "$(hpktainer logs two 2>&1 | wc -l)" = 2 ]; do :; done
hpktainer logs -n 1 -t two 2>&1
timeout 15 hpktainer run --rm $image yes | head -n 1; echo "unread: ${PIPESTATUS[0]}"
timeout 15 hpktainer exec two yes | head -n 1; echo "unread: ${PIPESTATUS[0]}"
timeout 15 hpktainer run --rm $image yes 2>&1 >/dev/full | cut -d: -f2-3; echo "full: ${PIPESTATUS[0]}"
hpktainer exec -u nobody two sh -c 'echo $HOME'; hpktainer exec -u nobody -e HOME=/x two sh -c 'echo $HOME'
run -p 8090:80/TCP $image echo upper case
hpktainer run -d --name five $image sh -c 'exit 4' >/dev/null
hpktainer wait five; hpktainer inspect -f '{{.State.Status}} {{.State.ExitCode}}' five
hpktainer ps -a -f name=five --format '{{.Status}} [{{.IP}}]'; hpktainer rm five >/dev/null
mkdir .docker; echo '{' >.docker/config.json; HPK_HOME=$HOME/.hpk HOME=$PWD hpktainer pull -q $image 2>&1 >/dev/null | grep -c "^[0-9].*WARN.*config.json"
hpktainer logs --since 0s two 2>&1; hpktainer logs --since 1h two 2>/dev/null
hpktainer ps -a -f status=exited --format '{{.Names}} {{.Status}}'
hpktainer ps -q -f name=t | wc -l
hpktainer inspect -f '{{.State.Status}}' nosuch two 2>/dev/null || echo "inspect: $?"
hpktainer inspect -f '{{.Config.Cmd}}' $image
hpktainer inspect two $image | head -n 1
hpktainer kill -s USR1 two; hpktainer wait two
hpktainer stop -t 0 three >/dev/null; hpktainer rm nosuch one two three 2>/dev/null || echo "rm: $?"
mkfifo in; script -qec "hpktainer run -it --rm --name four $image sh" /dev/null <in >/dev/null & terminal=$!; exec 9>in
until [ -n "$(hpktainer ps -q -f name=four)" ]; do :; done
kill -9 $terminal; until [ -z "$(hpktainer ps -aq)" ]; do :; done; echo hung up
HPK_STORE=$PWD/store; export HPK_STORE; hpktainer pull -q $image >/dev/null; hpktainer rmi busybox:1.37; hpktainer images -q
"#;

const HABITS_SHOWN: &[&str] = &[
    "4 0 ",
    "content ",
    "./d",
    "there is no ./nosuch",
    "/new/dir ",
    "must begin with /",
    "uid=1234 gid=555 ",
    "daemon ",
    "no user \"nosuch\"",
    "bare ",
    "-p 7000 -d -- --help ",
    "hpk-pause ",
    "piped ",
    "one: 1",
    "there is a container \"one\" already",
    "again: 125",
    "127.0.0.1:8089",
    "/dev/pts/0",
    "/tmp daemon 1",
    "exec: 127",
    "Z err",
    "y",
    "unread: 141",
    "y",
    "unread: 141",
    "passing the program's output on: No space left",
    "full: 125",
    "/home",
    "/x",
    "upper case",
    "4",
    "exited 4",
    "Exited (4) []",
    "1",
    "out",
    "one Exited (1)",
    "2",
    "running",
    "inspect: 125",
    "[\"sh\"]",
    "[",
    "two",
    "5",
    "one",
    "two",
    "three",
    "rm: 125",
    "hung up",
    "sha256:",
];

pub fn hpktainer_has_dockers_habits(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let said = testbed.on("hpc", "node2", HABITS).limit(120).success()?;
    let lines: Vec<&str> = said.lines().collect();
    for (number, part) in HABITS_SHOWN.iter().enumerate() {
        let line = lines.get(number).unwrap_or(&"");
        ensure!(
            line.contains(part),
            "line {number} is {line:?}, without {part:?}:\n{said}"
        );
    }
    ensure!(lines.len() == HABITS_SHOWN.len(), "too many lines:\n{said}");
    Ok(())
}

/// All that is named is the host's: the bubble has a loopback of its own.
pub fn hpktainer_pulls_from_a_registry_on_the_hosts_loopback(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let said = on_bare_host(
        &testbed,
        "export HPK_STORE=$(mktemp -d); export HPK_REGISTRIES=$HPK_STORE/registries.yaml
         echo '{mirrors: {\"127.0.0.1:18999\": {endpoint: [https://127.0.0.1:18999]}}, \
                 configs: {\"127.0.0.1:18999\": {tls: {insecure_skip_verify: true}}}}' >$HPK_REGISTRIES
         socat TCP-LISTEN:18999,bind=127.0.0.1,fork,reuseaddr TCP:registry.hpk.test:5000 & forwarder=$!
         trap 'kill $forwarder; rm -r $HPK_STORE' EXIT
         until socat -u OPEN:/dev/null TCP:127.0.0.1:18999 2>/dev/null; do :; done
         hpktainer run --rm -q 127.0.0.1:18999/library/busybox:1.37 sh -c 'ip -o link show tap0 | cut -d: -f2 | cut -d@ -f1'",
    )
    .success()?;
    ensure!(said.trim() == "tap0", "it said {said:?}");
    nothing_is_left_on_the_bare_host(&testbed)
}

/// The hosts' own disks are overlays, which the kernel puts no other on.
pub fn where_the_kernel_refuses_overlays_fuse_overlayfs_does(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    let said = on_bare_host(
        &testbed,
        &format!(
            "export HPK_LOCAL=$(mktemp -d /var/tmp/fuse.XXXXXX)
             hpktainer run -d --name fused {IMAGE} sh -c 'echo kept >/file; rm /bin/vi; exec sleep 600' >/dev/null
             until hpktainer exec fused cat /file 2>/dev/null; do :; done
             hpktainer exec fused sh -c 'ls /bin/vi 2>/dev/null || grep \" / \" /proc/mounts | cut -d\" \" -f3'
             hpktainer rm -f fused
             while pgrep -u hpc 'fuse-overlayfs|hpktainer' >/dev/null; do :; done
             rm -r $HPK_LOCAL"
        ),
    )
    .success()?;
    ensure!(
        said.lines().collect::<Vec<_>>() == ["kept", "fuse.fuse-overlayfs", "fused"],
        "it said {said:?}"
    );
    nothing_is_left_on_the_bare_host(&testbed)
}

pub fn hpktainer_logs_are_whole_through_rotations(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    // Of some 50 bytes a line, in files of 10 MiB.
    let said = on_bare_host(
        &testbed,
        &format!(
            "hpktainer run -d --name log {IMAGE} seq 1 400000 >/dev/null; hpktainer wait log
             hpktainer logs log | cmp - <(seq 1 400000) && echo whole
             hpktainer logs -n 300000 log | cmp - <(seq 100001 400000) && echo the last
             hpktainer rm log
             hpktainer run -d --rm --name log {IMAGE} sh -c 'sleep 1; seq 1 1000000; echo END' >/dev/null
             hpktainer logs -f log | cmp - <(seq 1 1000000; echo END) && echo followed"
        ),
    )
    .success()?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines == ["0", "whole", "the last", "log", "followed"],
        "{said}"
    );
    nothing_is_left_on_the_bare_host(&testbed)
}

pub fn what_kills_leave_on_a_bare_host_goes_with_the_next_run(context: &mut Context) -> Result<()> {
    let testbed = context.testbed.clone();
    // Two at once share a bubble; of one the hpktainer is killed, of the other the bubble's keeper.
    let said = on_bare_host(
        &testbed,
        &format!(
            // In two parts: what is looked for must not be this script.
            "n=on; hpktainer run -d --rm --name ${{n}}e {IMAGE} sleep 600 >/dev/null &
             hpktainer run -d --rm --name two {IMAGE} sleep 600 >/dev/null; wait $!
             pgrep -cu hpc -f 'hpktainer keep-bubbl[e]' || true
             kill -9 $(pgrep -ou hpc -f 'hpktainer run .*--name on[e]')
             kill -9 $(pgrep -ou hpc -f 'hpktainer keep-bubbl[e]')
             hpktainer run --rm {IMAGE} wget -qO- http://outside.hpk.test/
             hpktainer exec two echo two lives
             hpktainer stop -t 0 two >/dev/null; hpktainer ps -aq
             HPK_UPLINK=slirp4netns hpktainer run --rm {IMAGE} wget -qO- http://outside.hpk.test/
             n=thre; id=$(hpktainer run -d --name ${{n}}e {IMAGE} sleep 600)
             kill -9 $(pgrep -ou hpc -f 'hpktainer run .*--name thre[e]')
             until hpktainer ps -a | grep -q Lost; do :; done
             hpktainer stop three; [ -e ~/.hpk/store/claims/hpktainer-$id ] || echo given back
             hpktainer rm three >/dev/null"
        ),
    )
    .success()?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == 6
            && lines[0] == "2"
            && lines[1].contains("hello")
            && lines[2] == "two lives"
            && lines[3].contains("hello")
            && lines[4..] == ["three", "given back"],
        "{said}"
    );
    nothing_is_left_on_the_bare_host(&testbed)
}

pub fn a_bare_host_without_an_uplinks_program_is_told_which(context: &mut Context) -> Result<()> {
    let said = on_bare_host(
        &context.testbed.clone(),
        &format!("PATH=/no/such hpktainer run --rm {IMAGE} true"),
    )
    .output()?;
    ensure!(
        said.status == 125 && said.stderr.contains("pasta") && said.stderr.contains("slirp4netns"),
        "{said:?}"
    );
    nothing_is_left_on_the_bare_host(&context.testbed)
}
