#!/bin/bash
# The shim under an unmodified containerd, as root: each line of the table is one promise.
#
#   shim-hpk/tests/ctr.sh            with RUNTIME (io.containerd.hpk.v2), IMAGE (docker.io/library/busybox:latest,
#                                    imported already), ADDRESS (containerd's socket; one is started if nobody serves
#                                    it, with its state in a temporary directory), IMAGE_TAR (imported first if set),
#                                    ONLY (a regular expression: the promises with such a name)
#
# RUNTIME=io.containerd.runc.v2 runs the same on the reference. The shim and hpk-pause must be in
# PATH of containerd. Prints "ok N - name" or "not ok N - name", exits 1 if one failed.
set -u
RUNTIME=${RUNTIME:-io.containerd.hpk.v2}
IMAGE=${IMAGE:-docker.io/library/busybox:latest}
ADDRESS=${ADDRESS:-/run/containerd/containerd.sock}
PREFIX=hpkctr$$
WORK=$(mktemp -d /tmp/hpk-ctr.XXXXXX)
STARTED=
FAILED=0
COUNT=0

ctr() { command timeout 60 ctr --address "$ADDRESS" --namespace "$PREFIX" "$@"; }
run() { ctr run --runtime "$RUNTIME" "$@"; }

finish() {
    for task in $(ctr task ls -q 2>/dev/null); do ctr task kill -s SIGKILL "$task" >/dev/null 2>&1; ctr task rm -f "$task" >/dev/null 2>&1; done
    for c in $(ctr container ls -q 2>/dev/null); do ctr container rm "$c" >/dev/null 2>&1; done
    for image in $(ctr image ls -q 2>/dev/null); do ctr image rm --sync "$image" >/dev/null 2>&1; done
    ctr namespace rm "$PREFIX" >/dev/null 2>&1
    if [ -n "$STARTED" ]; then
        kill "$STARTED" 2>/dev/null
        wait "$STARTED" 2>/dev/null
        umount "$WORK/root" 2>/dev/null
    fi
    rm -rf "$WORK"
}
trap finish EXIT

if ! ctr version >/dev/null 2>&1; then
    # Its snapshots may not lie on an overlay.
    mkdir -p "$WORK/root" && mount -t tmpfs tmpfs "$WORK/root" || exit 1
    containerd --root "$WORK/root" --state "$WORK/state" --address "$ADDRESS" >"$WORK/containerd.log" 2>&1 &
    STARTED=$!
    for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
fi
if [ -n "${IMAGE_TAR:-}" ]; then
    ctr image import "$IMAGE_TAR" >/dev/null || exit 1
elif ! ctr image ls -q | grep -qx "$IMAGE"; then
    # Images belong to a containerd namespace: take the default one's.
    command ctr --address "$ADDRESS" -n default image export "$WORK/image.tar" "$IMAGE" &&
        ctr image import "$WORK/image.tar" >/dev/null || exit 1
fi

# check NAME COMMAND…: the command must succeed; what it printed is shown if it doesn't.
check() {
    local name=$1; shift
    [[ $name =~ ${ONLY:-} ]] || return 0
    COUNT=$((COUNT + 1))
    if ( "$@" ) >"$WORK/out" 2>&1; then
        echo "ok $COUNT - $name"
    else
        FAILED=$((FAILED + 1))
        echo "not ok $COUNT - $name"
        sed 's/^/#   /' "$WORK/out" | tail -20
    fi
}
is() { [ "$1" = "$2" ] || { echo "got: $1"; echo "want: $2"; return 1; }; }
# Whether a process is there and not a zombie (nobody may reap in the test's PID namespace).
# One that goes while it is looked at is not alive.
alive() { local state; state=$(grep '^State:' "/proc/$1/status" 2>/dev/null) && [[ $state != *Z* ]]; }
# A background container: daemon NAME COMMAND…
daemon() { local name=$1; shift; run -d "$IMAGE" "$PREFIX-$name" "$@"; }
gone() { ctr task kill -s SIGKILL "$PREFIX-$1" >/dev/null 2>&1; ctr task rm -f "$PREFIX-$1" >/dev/null 2>&1; ctr container rm "$PREFIX-$1" >/dev/null 2>&1; }
exec_in() { local name=$1 id=$2; shift 2; ctr task exec --exec-id "$id" "$PREFIX-$name" "$@"; }

output_and_exit_code() {
    is "$(run --rm "$IMAGE" $PREFIX-a echo hi)" hi || return 1
    run --rm "$IMAGE" $PREFIX-b sh -c 'exit 7'; is $? 7 || return 1
    run --rm "$IMAGE" $PREFIX-c sh -c 'sh -c "kill -9 \$\$"; exit $?'; is $? 137
}
stdin_reaches_the_program() { is "$(printf 'one\ntwo\n' | run --rm "$IMAGE" $PREFIX-in cat)" "$(printf 'one\ntwo')"; }
much_output_arrives_whole() { is "$(run --rm "$IMAGE" $PREFIX-much sh -c 'head -c 20000000 /dev/zero | tr "\0" x' | wc -c)" 20000000; }
streams_are_apart() {
    run --rm "$IMAGE" $PREFIX-err sh -c 'echo out; echo err >&2' >"$WORK/o" 2>"$WORK/e"
    is "$(cat "$WORK/o")" out && is "$(cat "$WORK/e")" err
}
environment_and_directory() {
    is "$(run --rm --env A='b c' --cwd /tmp "$IMAGE" $PREFIX-env sh -c 'echo "$A $PWD"')" 'b c /tmp'
}
environment_is_in_no_argv() {
    daemon secret sh -c 'sleep 100' || return 1
    gone secret
    run -d --env SECRET=s3kr1t "$IMAGE" $PREFIX-secret sleep 100 || return 1
    sleep 0.3
    local seen; seen=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -c 's3kr[1]t')
    gone secret
    # ctr's own argv ended with it.
    is "$seen" 0
}
user_and_groups() { is "$(run --rm --user 1234:2345 "$IMAGE" $PREFIX-user sh -c 'id -u; id -g')" "$(printf '1234\n2345')"; }
capabilities_are_docker_like() {
    is "$(run --rm "$IMAGE" $PREFIX-cap sh -c 'grep CapEff /proc/self/status | cut -f2')" 00000000a80425fb
}
own_namespaces() {
    is "$(run --rm "$IMAGE" $PREFIX-ns sh -c 'echo $$')" 1 || return 1
    local name inside
    for name in net mnt uts ipc pid; do
        inside=$(run --rm "$IMAGE" $PREFIX-ns-$name readlink /proc/self/ns/$name) || return 1
        [ "$inside" != "$(readlink /proc/self/ns/$name)" ] || { echo "$name is the host's"; return 1; }
    done
}
proc_sys_dev() {
    run --rm "$IMAGE" $PREFIX-dev sh -ec 'echo x >/dev/null; head -c 4 /dev/urandom | wc -c | grep -q 4
        test -c /dev/zero; test -L /dev/stdout; test -d /dev/pts; test -d /dev/shm
        ! echo 1 >/proc/sys/kernel/panic 2>/dev/null; test -z "$(cat /proc/kcore 2>/dev/null | head -c 1)"
        ls /sys/class/net | grep -qx lo; test "$(ls /sys/class/net | wc -l)" -ge 1'
}
read_only_root() {
    run --rm --read-only "$IMAGE" $PREFIX-ro sh -c '! touch /x 2>/dev/null && grep -q " / .* ro" /proc/mounts'
}
bind_mounts() {
    mkdir -p "$WORK/src/sub"; echo data >"$WORK/src/file"
    is "$(run --rm --mount "type=bind,src=$WORK/src,dst=/mnt/data,options=rbind:ro" "$IMAGE" $PREFIX-bind \
        sh -c 'cat /mnt/data/file; touch /mnt/data/x 2>/dev/null && echo written')" data || return 1
    run --rm --mount "type=bind,src=$WORK/src/file,dst=/etc/afile,options=bind:rw" "$IMAGE" $PREFIX-bind2 sh -c 'echo more >/etc/afile' || return 1
    is "$(cat "$WORK/src/file")" more
}
missing_bind_source_names_it() {
    run --rm --mount "type=bind,src=/no/such/dir,dst=/mnt,options=rbind" "$IMAGE" $PREFIX-nosrc true >"$WORK/o" 2>&1 && return 1
    grep -q /no/such/dir "$WORK/o" || { cat "$WORK/o"; return 1; }
}
missing_program_names_it() {
    run --rm "$IMAGE" $PREFIX-noprog no-such-program >"$WORK/o" 2>&1 && return 1
    grep -q 'no-such-program' "$WORK/o" || { cat "$WORK/o"; return 1; }
}
terminal() {
    command -v script >/dev/null || { echo 'needs script(1)'; return 1; }
    local text
    text=$(script -qec "stty rows 33 cols 77; timeout --foreground 30 ctr -a $ADDRESS -n $PREFIX run --rm -t --runtime $RUNTIME $IMAGE $PREFIX-tty sh -c 'tty; sleep 0.3; stty size'" /dev/null </dev/null | tr -d '\r')
    echo "$text" | grep -q '/dev/pts/0$' && echo "$text" | grep -q '33 77$' || { echo "$text"; return 1; }
}
exec_and_exit_codes() {
    daemon ex sleep 1000 || return 1
    exec_in ex e1 true; is $? 0 || { gone ex; return 1; }
    exec_in ex e2 sh -c 'exit 42'; is $? 42 || { gone ex; return 1; }
    is "$(exec_in ex e3 sh -c 'echo $PPID; cat /proc/1/comm; ls /; hostname' | sed -n 2p)" sleep || { gone ex; return 1; }
    is "$(echo input | exec_in ex e4 cat)" input || { gone ex; return 1; }
    exec_in ex e5 no-such-program >"$WORK/o" 2>&1 && { gone ex; return 1; }
    grep -q no-such-program "$WORK/o"; local rc=$?
    gone ex; return $rc
}
exec_terminal() {
    daemon ext sleep 1000 || return 1
    local text
    text=$(script -qec "stty rows 30 cols 90; timeout --foreground 30 ctr -a $ADDRESS -n $PREFIX task exec -t --exec-id t1 $PREFIX-ext sh -c 'tty; sleep 0.3; stty size; exit 5'; echo rc=\$?" /dev/null </dev/null | tr -d '\r')
    gone ext
    echo "$text" | grep -q '/dev/pts/0$' && echo "$text" | grep -q '30 90$' && echo "$text" | grep -q 'rc=5' || { echo "$text"; return 1; }
}
kill_and_state() {
    daemon k sh -c 'trap "exit 3" TERM; while :; do sleep 0.1; done' || return 1
    sleep 0.3
    ctr task ls | grep -q "$PREFIX-k .*RUNNING" || { ctr task ls; gone k; return 1; }
    ctr task kill -s SIGTERM $PREFIX-k
    for _ in $(seq 50); do ctr task ls | grep -q "$PREFIX-k .*STOPPED" && break; sleep 0.1; done
    ctr task ls | grep -q "$PREFIX-k .*STOPPED" || { ctr task ls; gone k; return 1; }
    ctr task rm $PREFIX-k >"$WORK/o" 2>&1
    gone k; grep -q 'exit code 3' "$WORK/o" || { cat "$WORK/o"; return 1; }
}
kill_all_reaches_every_process() {
    daemon ka sh -c 'sleep 1000 & sleep 1000 & wait' || return 1
    sleep 0.2
    is "$(ctr task ps $PREFIX-ka | tail -n +2 | wc -l)" 3 || { gone ka; return 1; }
    local pids; pids=$(ctr task ps $PREFIX-ka | awk 'NR>1{print $1}')
    ctr task kill -a -s SIGKILL $PREFIX-ka; sleep 0.5
    for pid in $pids; do alive "$pid" && { echo "pid $pid lives"; gone ka; return 1; }; done
    gone ka
}
metrics() {
    daemon me sleep 1000 || return 1
    ctr task metrics $PREFIX-me >"$WORK/o" 2>&1; local rc=$?
    gone me; grep -qi 'memory.usage\|usage_in_bytes' "$WORK/o" || { cat "$WORK/o"; return 1; }
    return $rc
}
# Where a container's cgroup is, of the controller $1: group CONTROLLER NAME.
group() {
    local v1=/sys/fs/cgroup/$1/$PREFIX/$PREFIX-$2
    [ -d "$v1" ] && { echo "$v1"; return; }
    echo "/sys/fs/cgroup/$PREFIX/$PREFIX-$2"
}
limits_are_in_force() {
    run -d --memory-limit 67108864 --cpu-quota 50000 --cpu-period 100000 "$IMAGE" $PREFIX-lim sleep 1000 || return 1
    local memory cpu
    memory=$(cat "$(group memory lim)"/memory.limit_in_bytes "$(group memory lim)"/memory.max 2>/dev/null)
    cpu=$(cat "$(group cpu lim)"/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 "$(group cpu lim)/cpu.max")
    # An exec is under them too.
    exec_in lim e1 sh -c 'sleep 1000' >/dev/null 2>&1 &
    for _ in $(seq 50); do [ "$(grep -c . "$(group memory lim)/cgroup.procs")" = 2 ] && break; sleep 0.1; done
    local members; members=$(grep -c . "$(group memory lim)/cgroup.procs")
    gone lim; wait
    is "$memory $cpu $members" '67108864 50000 2' || return 1
    [ ! -e "$(group memory lim)" ] || { echo 'the cgroup is left'; return 1; }
}
pause_stops_it_and_resume_goes_on() {
    daemon pr sh -c 'while :; do echo x >>/tick; sleep 0.02; done' || return 1
    local ticks a b state; ticks=/proc/$(ctr task ls | awk -v t="$PREFIX-pr" '$1==t{print $2}')/root/tick
    for _ in $(seq 50); do [ -s "$ticks" ] && break; sleep 0.1; done
    ctr task pause $PREFIX-pr || { gone pr; return 1; }
    state=$(ctr task ls | awk -v t="$PREFIX-pr" '$1==t{print $3}')
    a=$(wc -l <"$ticks"); sleep 0.3; b=$(wc -l <"$ticks")
    exec_in pr e1 true >/dev/null 2>&1 && { echo 'exec in a paused container'; gone pr; return 1; }
    ctr task resume $PREFIX-pr || { gone pr; return 1; }
    for _ in $(seq 50); do [ "$(wc -l <"$ticks")" -gt "$b" ] && break; sleep 0.1; done
    local c; c=$(wc -l <"$ticks"); gone pr
    is "$state $a" "PAUSED $b" && [ "$c" -gt "$b" ]
}
paused_container_can_be_killed() {
    daemon pk sleep 1000 || return 1
    ctr task pause $PREFIX-pk || { gone pk; return 1; }
    local pid; pid=$(ctr task ls | awk -v t="$PREFIX-pk" '$1==t{print $2}')
    ctr task kill -s SIGKILL $PREFIX-pk
    for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
    alive "$pid"; local rc=$?; gone pk; [ $rc != 0 ]
}
# events NAME: what containerd published about a container, one word a line.
events() { grep -F "$PREFIX-$1" "$WORK/events" | grep -o '/tasks/[a-z-]*' | cut -d/ -f3; }
lack_of_memory_is_told_before_the_end() {
    command timeout 60 ctr --address "$ADDRESS" --namespace "$PREFIX" events >"$WORK/events" 2>&1 &
    local listener=$!
    run --rm --memory-limit 20971520 "$IMAGE" $PREFIX-oom sh -c 'head -c 90m /dev/zero | tail' >/dev/null 2>&1
    run --rm --memory-limit 20971520 "$IMAGE" $PREFIX-oom2 dd if=/dev/zero of=/dev/null bs=90M count=1 >/dev/null 2>&1
    local code=$?
    for _ in $(seq 50); do events oom2 | grep -q delete && break; sleep 0.1; done
    kill $listener; wait $listener 2>/dev/null
    is "$code" 137 && is "$(events oom2 | tr '\n' ' ')" 'create start oom exit delete ' && events oom | grep -q oom
}
events_come_in_order_and_once() {
    command timeout 60 ctr --address "$ADDRESS" --namespace "$PREFIX" events >"$WORK/events" 2>&1 &
    local listener=$!
    run --rm "$IMAGE" $PREFIX-ev true
    daemon ev2 sleep 1000 && exec_in ev2 e1 true && ctr task pause $PREFIX-ev2 && ctr task resume $PREFIX-ev2
    gone ev2
    for _ in $(seq 50); do events ev2 | grep -q delete && break; sleep 0.1; done
    kill $listener; wait $listener 2>/dev/null
    is "$(events 'ev"' | tr '\n' ' ')" 'create start exit delete ' &&
        is "$(events ev2 | tr '\n' ' ')" 'create start exec-added exec-started exit paused resumed exit delete '
}
seccomp_profiles_are_in_force() {
    printf '%s' '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}' >"$WORK/profile"
    run --rm --seccomp --seccomp-profile "$WORK/profile" "$IMAGE" $PREFIX-sc sh -c 'mkdir /x; grep Seccomp: /proc/self/status' >"$WORK/o" 2>&1
    grep -qi 'not supported' "$WORK/o" && grep -q 'Seccomp:.*2' "$WORK/o" || { cat "$WORK/o"; return 1; }
    # containerd's default profile, and in an exec as well.
    run -d --seccomp "$IMAGE" $PREFIX-sd sleep 1000 || return 1
    exec_in sd e1 sh -c 'grep Seccomp: /proc/self/status; echo ran' >"$WORK/o" 2>&1
    gone sd
    grep -q 'Seccomp:.*2' "$WORK/o" && grep -q ran "$WORK/o" || { cat "$WORK/o"; return 1; }
}
hooks_run_in_their_order_with_the_state() {
    local root=$WORK/hooked hook seen
    mkdir -p "$root/bin"
    cp "$(command -v hpk-pause)" "$root/bin/program"
    # Each adds its name, the state's status, and whether the pid is of a process in another network namespace.
    cat >"$WORK/hook" <<'HOOK'
#!/bin/bash
state=$(cat)
pid=$(jq -r '.pid // 0' <<<"$state")
where=none
[ "$pid" = 0 ] || { [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ] && where=inside; }
jq -r --arg n "$1" --arg w "$where" --arg e "$GIVEN" '"\($n) \(.status) \(.annotations.note) \($e) \($w)"' <<<"$state" >>"$2"
HOOK
    chmod +x "$WORK/hook"
    hook() { jq -nc --arg n "$1" --arg p "$PATH" '[{path: $ENV.HOOK, args: ["hook", $n, $ENV.SEEN], env: ["GIVEN=value", "PATH=" + $p], timeout: 20}]'; }
    export HOOK=$WORK/hook SEEN=$WORK/seen
    ctr oci spec | jq --arg r "$root" --arg id "$PREFIX" --argjson a "$(hook prestart)" --argjson b "$(hook createRuntime)" \
        --argjson c "$(hook poststart)" --argjson d "$(hook poststop)" \
        '.root.path = $r | .process.args = ["/bin/program"] | .process.terminal = false | .annotations.note = "noted"
         | .linux.cgroupsPath = "/" + $id + "/" + $id + "-hook"
         | .hooks = {prestart: $a, createRuntime: $b, poststart: $c, poststop: $d}' >"$WORK/hooked.json"
    run -d --config "$WORK/hooked.json" $PREFIX-hook || return 1
    gone hook
    for _ in $(seq 50); do grep -q poststop "$SEEN" && break; sleep 0.1; done
    seen=$(cat "$SEEN")
    is "$seen" 'prestart creating noted value inside
createRuntime creating noted value inside
poststart running noted value inside
poststop stopped noted value none'
}
the_roots_propagation_is_applied() {
    local root=$WORK/spread pid
    mkdir -p "$root/bin"
    cp "$(command -v hpk-pause)" "$root/bin/program"
    ctr oci spec | jq --arg r "$root" --arg id "$PREFIX" \
        '.root.path = $r | .process.args = ["/bin/program"] | .process.terminal = false
         | .linux.cgroupsPath = "/" + $id + "/" + $id + "-prop" | .linux.rootfsPropagation = "rshared"' >"$WORK/spread.json"
    run -d --config "$WORK/spread.json" $PREFIX-prop || return 1
    pid=$(ctr task ls | awk -v t="$PREFIX-prop" '$1==t{print $2}')
    root=$(awk '$5 == "/" {print $7}' "/proc/$pid/mountinfo")
    gone prop
    is "${root%:*}" shared
}
much_terminal_output_arrives_whole() {
    # The wait at the end is for script(1), which drops what its terminal holds when ctr ends.
    local text
    text=$(script -qec "timeout --foreground 50 ctr -a $ADDRESS -n $PREFIX run --rm -t --runtime $RUNTIME $IMAGE $PREFIX-tto sh -c 'seq 400000; sleep 1'" /dev/null </dev/null | tr -d '\r')
    is "$(echo "$text" | wc -l) $(echo "$text" | tail -n 1)" '400000 400000'
}
no_engine_process_stays() {
    [ "$RUNTIME" = io.containerd.hpk.v2 ] || return 0
    daemon eng sleep 1000 || return 1
    local n; n=$(ps -eo args | grep -c '^Apptainer runtime parent')
    gone eng; is "$n" 0
}
killed_shim_leaves_nothing() {
    daemon sk sleep 4321 || return 1
    local pid shim; pid=$(ctr task ls | awk -v t="$PREFIX-sk" '$1==t{print $2}')
    shim=$(ps -eo pid,args | awk -v n="$PREFIX-sk" '/containerd-shim/ && index($0,n) && !/awk/ {print $1; exit}')
    kill -9 "$shim"
    for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
    alive "$pid" && { echo "container process $pid lives"; gone sk; return 1; }
    gone sk; return 0
}
nothing_is_left() {
    sleep 0.5
    local bad=0
    ps -eo pid,args | grep -F "$PREFIX" | grep -v -e grep -e "$0" -e 'ctr.sh' && bad=1
    grep -F "/$PREFIX/" /proc/self/mounts && bad=1
    ls -d /run/containerd/io.containerd.runtime.v2.task/"$PREFIX"/* 2>/dev/null && bad=1
    find /sys/fs/cgroup -type d -path "*/$PREFIX/*" 2>/dev/null | grep . && bad=1
    return $bad
}

check 'output arrives, exit codes are exact' output_and_exit_code
check 'stdin reaches the program and ends' stdin_reaches_the_program
check '20 MB of output arrive whole' much_output_arrives_whole
check 'stdout and stderr stay apart' streams_are_apart
check 'environment and working directory' environment_and_directory
check 'the environment is in no argv' environment_is_in_no_argv
check 'user and group' user_and_groups
check 'capabilities are the spec'"'"'s' capabilities_are_docker_like
check 'PID 1 in namespaces of its own' own_namespaces
check '/proc, /sys and /dev are as the spec says' proc_sys_dev
check 'a read-only root' read_only_root
check 'bind mounts of directories and files, ro and rw' bind_mounts
check 'a missing mount source is named' missing_bind_source_names_it
check 'a missing program is named' missing_program_names_it
check 'a terminal with its size' terminal
check 'exec: output, stdin, exit codes, a missing program' exec_and_exit_codes
check 'exec with a terminal' exec_terminal
check 'kill, state, delete' kill_and_state
check 'ps and kill --all' kill_all_reaches_every_process
check 'metrics' metrics
check 'limits are in force, in an exec too' limits_are_in_force
check 'pause and resume' pause_stops_it_and_resume_goes_on
check 'a paused container can be killed' paused_container_can_be_killed
check 'a kill for lack of memory is told, once, before the end' lack_of_memory_is_told_before_the_end
check 'events in order, each once' events_come_in_order_and_once
check 'seccomp profiles, in an exec too' seccomp_profiles_are_in_force
check 'hooks run in their order, with the state' hooks_run_in_their_order_with_the_state
check 'the propagation of the root is the spec'"'"'s' the_roots_propagation_is_applied
check '3 MB of terminal output arrive whole' much_terminal_output_arrives_whole
check 'no process of the engine stays' no_engine_process_stays
check 'a killed shim leaves nothing' killed_shim_leaves_nothing
check 'nothing is left' nothing_is_left
echo "1..$COUNT"
[ "$FAILED" = 0 ]
