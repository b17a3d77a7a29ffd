#!/bin/bash
# nerdctl with one runtime, on a stock containerd; on a testbed host, as root.
#
#   run.sh HANDLER     runc (the reference) or hpk
#
# A line a promise, "ok N - …" or "not ok N - …"; exits 1 if one failed. nerdctl (bin/nerdctl, see build.sh)
# and the shim come from /hpk/bin. Its networks are made by hooks of the container's spec.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=../scene.sh
. "$here/../scene.sh"
handler=${1:?usage: run.sh runc|hpk}
enter_scene "$0" "$@"
start_containerd || exit 1
image=ghcr.io/containerd/busybox:1.36
export CONTAINERD_ADDRESS=$socket CNI_PATH=/usr/lib/cni NETCONFPATH=$work/nerdctl-net.d
count=0
failed=0

n() { timeout 60 "$bin/nerdctl" --data-root "$work/nerdctl" --hosts-dir "$work/none" --cgroup-manager cgroupfs "$@"; }
run() { n run --runtime "io.containerd.$handler.v2" "$@"; }
check() { # NAME FUNCTION
    count=$((count + 1))
    if ( "$2" ) >"$work/check" 2>&1; then echo "ok $count - $1"; else
        failed=1
        echo "not ok $count - $1"
        tail -12 "$work/check" | sed 's/^/#   /'
    fi
}
is() { [ "$1" = "$2" ] || { echo "got: $1"; echo "want: $2"; return 1; }; }
# eventually SECONDS CMD…
eventually() { await "$1" "$*" "${@:2}"; }

pulled() { n pull -q $image; }
output_and_exit_code() {
    is "$(run --rm $image echo hi)" hi || return 1
    run --rm $image sh -c 'exit 7'
    is $? 7
}
stdin() { is "$(echo through | run --rm -i $image cat)" through; }
terminal() {
    local text
    text=$(script -qec "timeout --foreground 15 $bin/nerdctl --data-root $work/nerdctl --cgroup-manager cgroupfs run --rm -it --runtime io.containerd.$handler.v2 $image sh -c 'tty; exit 5'; echo rc=\$?" /dev/null < <(sleep 20))
    echo "$text"
    [[ $text == *'/dev/pts/0'*'rc=5'* ]]
}
options() {
    mkdir -p "$work/volume"
    echo data >"$work/volume/file"
    is "$(run --rm -e A='b c' -u 1234:2345 -w /tmp -v "$work/volume:/v:ro" --hostname here $image \
        sh -c 'echo "$A $(id -u) $(id -g) $PWD $(cat /v/file) $(hostname)"; touch /v/x 2>/dev/null && echo written')" \
        'b c 1234 2345 /tmp data here'
}
detached() {
    run -d --name web --memory 64m -p 18080:80 $image sh -c 'echo started; echo warned >&2; trap "exit 3" TERM; httpd -p 80 -h /etc; while :; do sleep 0.1; done' &&
        n ps --format '{{.Names}} {{.Status}}' | grep -q '^web Up'
}
logs() {
    eventually 10 bash -c "'$bin/nerdctl' --data-root '$work/nerdctl' logs web 2>/dev/null | grep -q started" &&
        is "$(n logs web 2>/dev/null)" started && is "$(n logs web 2>&1 >/dev/null)" warned
}
executed() {
    is "$(echo in | n exec -i web sh -c 'cat; echo out')" "$(printf 'in\nout')" || return 1
    # nerdctl 1.7 tells the code in words.
    [[ $(n exec web sh -c 'exit 9' 2>&1) == *'exit code 9'* ]]
}
executed_in_a_terminal() {
    local text
    text=$(script -qec "timeout --foreground 15 $bin/nerdctl --data-root $work/nerdctl exec -it web sh -c 'tty; exit 4'" /dev/null < <(sleep 20))
    echo "$text"
    [[ $text == *'/dev/pts/'*'exit code 4'* ]]
}
network() { n exec web ip -4 -o address show eth0 | grep -q 'inet 10\.4\.0\.'; }
published() { eventually 10 curl -fs http://127.0.0.1:18080/passwd && curl -fs http://127.0.0.1:18080/passwd | grep -q ^root; }
limit_and_figures() {
    n inspect web --format '{{.State.Status}}' | grep -q running &&
        n stats --no-stream --format '{{.Name}} {{.MemUsage}}' web | tee /dev/stderr | grep -q '^web .*64MiB'
}
processes() { n top web | grep -q httpd; }
paused() {
    n pause web && is "$(n inspect web --format '{{.State.Status}}')" paused && ! n exec web true &&
        n unpause web && n exec web true
}
copied() {
    echo copied >"$work/from"
    n cp "$work/from" web:/tmp/to && is "$(n exec web cat /tmp/to)" copied && n cp web:/tmp/to "$work/back" && is "$(cat "$work/back")" copied
}
stopped() {
    local from=$SECONDS
    n stop -t 20 web && [ $((SECONDS - from)) -lt 15 ] && is "$(n inspect web --format '{{.State.ExitCode}}')" 3
}
started_again() { n start web && n exec web true && published; }
restarted() { n restart -t 5 web && eventually 10 "$bin/nerdctl" --data-root "$work/nerdctl" exec web true && published; }
killed_and_waited_for() {
    run -d --name gone $image sleep 1000 && n kill gone && is "$(n wait gone)" 137 && n rm gone
}
containerd_killed() {
    local pid
    pid=$(cat "$work/containerd.pid")
    kill -9 "$pid"
    eventually 30 bash -c "[ \$(cat $work/containerd.pid) != $pid ] && ctr version" && n exec web true && published
}
removed() { n rm -f web && ! n inspect web; }
nothing_is_left() {
    local left
    sleep 0.2
    left=$({ n ps -aq; ls "$work"/nerdctl/*/containers/default 2>/dev/null
        find /var/lib/cni/networks -name '10.4.0.*' 2>/dev/null
        pgrep -fa "containerd-shim-$handler-v2"; grep default /proc/self/mounts | grep containerd
        iptables-save -t nat | grep 18080; })
    is "$left" ''
}

check 'an image is pulled' pulled
check 'output and exit code' output_and_exit_code
check 'stdin' stdin
check 'run -it: a terminal' terminal
check 'environment, user, directory, volume, host name' options
check 'run -d, ps' detached
check 'logs, streams apart' logs
check 'exec: stdin, output, exit code' executed
check 'exec -it: a terminal' executed_in_a_terminal
check 'an address on the bridge' network
check 'a published port' published
check 'inspect, stats with the limit' limit_and_figures
check 'top' processes
check 'pause, unpause' paused
check 'cp, both ways' copied
check 'stop: SIGTERM, its exit code' stopped
check 'start again' started_again
check 'restart' restarted
check 'kill, wait, rm' killed_and_waited_for
check 'kill -9 of containerd ends nothing' containerd_killed
check 'rm -f' removed
check 'nothing is left' nothing_is_left
echo "1..$count"
exit $failed
