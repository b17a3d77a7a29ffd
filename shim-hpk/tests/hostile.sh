#!/bin/bash
# Hostile bundles: a row is a change to a sound spec (jq) and what the error must name. Each must be
# refused, and leave nothing: no process, mount, cgroup, bundle or socket. As root in a testbed host;
# containerd's shim and hpk-pause in PATH, a containerd of its own is started.
set -u
work=$(mktemp -d /tmp/hostile.XXXXXX)
name=hostile$$
runtime=${RUNTIME:-io.containerd.hpk.v2}
address=$work/sock
failed=0
count=0
ctr() { timeout 60 ctr --address "$address" --namespace "$name" "$@"; }
mkdir "$work/data" && mount -t tmpfs tmpfs "$work/data" || exit 1
containerd --root "$work/data" --state "$work/state" --address "$address" >"$work/log" 2>&1 &
daemon=$!
finish() { kill $daemon; wait $daemon 2>/dev/null; umount "$work/data"; rm -rf "$work"; }
trap finish EXIT
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done

mkdir -p "$work/rootfs/bin" "$work/rootfs/etc"
# A static program that ends at once.
cp "$(command -v hpk-pause)" "$work/rootfs/bin/true"
ctr oci spec | jq --arg r "$work/rootfs" '.root.path = $r | .process.args = ["/bin/true", "--version"] | .process.terminal = false
    | .linux.cgroupsPath = "/'"$name"'/x"' >"$work/sound.json"

# What of a container may be left, by its name.
left() {
    ps -eo pid,args | grep -F -- "-id $1" | grep -v grep
    grep -F "$work/state" /proc/self/mounts
    ls -d "$work/state/io.containerd.runtime.v2.task/$name"/* 2>/dev/null
    find /sys/fs/cgroup -type d -path "*/$name/*" 2>/dev/null
}
settled() { for _ in $(seq 50); do [ -z "$(left "$1")" ] && return; sleep 0.1; done; left "$1"; return 1; }

# try WANTED FILTER: the spec changed by FILTER; the error must match WANTED, or, if that is `ok`, there is none.
try() {
    local wanted=$1 filter=$2 id output status
    count=$((count + 1))
    id=$name-$count
    jq -c "$filter" "$work/sound.json" >"$work/spec.json" || { failed=1; return; }
    output=$(ctr run --rm --runtime "$runtime" --config "$work/spec.json" "$id" 2>&1)
    status=$?
    ctr container rm "$id" >/dev/null 2>&1
    if { [ "$wanted" = ok ] && [ $status = 0 ]; } || { [ "$wanted" != ok ] && [ $status != 0 ] && grep -Eq -- "$wanted" <<<"$output"; }; then
        if output=$(settled "$id"); then echo "ok $count - $filter" | cut -c1-150; return; fi
    fi
    failed=1
    echo "not ok $count - $filter" | cut -c1-150
    echo "#   wanted: $wanted (exit $status)"
    head -c 600 <<<"$output" | sed 's/^/#   /'
}

try ok '.'
while IFS=$'\t' read -r wanted filter <&3; do
    [ -z "$wanted" ] || try "$wanted" "$filter"
done 3<<'TABLE'
process	del(.process)
process.args	.process.args = []
process.args|NUL	.process.args = ["/bin/true", "a\u0000b"]
executable file not found	.process.args = ["no-such-program"]
no such file	.process.args = ["/no/such/program"]
[Aa]rgument list too long	.process.args = ["/bin/true", ("x" * 3000000)]
process.cwd	.process.cwd = "not/absolute"
process.user.uid	.process.user.uid = 4294967295
process.user.gid	.process.user.gid = 4294967295
set limit	.process.rlimits = [{"type": "RLIMIT_NOFILE", "soft": 2000, "hard": 1000}]
RLIMIT_NONSENSE	.process.rlimits = [{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]
CAP_NONSENSE	.process.capabilities.effective = ["CAP_NONSENSE"]
oom_score_adj	.process.oomScoreAdj = 100000
process.apparmorProfile	.process.apparmorProfile = "x"
process.selinuxLabel	.process.selinuxLabel = "a:b:c:d"
process.user.umask	.process.user.umask = 4294967295
set 70000 additional groups	.process.user.additionalGids = [range(70000)]
root.path	del(.root)
root.path	.root.path = ""
domainname is invalid	.domainname = ("d" * 65)
linux.devices /dev/x major	.linux.devices = [{"path": "/dev/x", "type": "c", "major": 99999999, "minor": 3}]
linux.devices /dev/null is invalid	.linux.devices = [{"path": "/dev/null", "type": "c", "major": 1, "minor": 5}]
linux.maskedPaths is invalid	.linux.maskedPaths = ["/"]
linux.readonlyPaths is invalid	.linux.readonlyPaths = ["/etc/.."]
a bind has no option .nonsense	.mounts += [{"destination": "/x", "type": "bind", "source": "/etc", "options": ["bind", "nonsense"]}]
linux.namespaces pid is invalid	.linux.namespaces |= map(if .type == "pid" then .path = "/proc/1/ns/net" else . end)
first process ended in its set-up .killed by signal 9	.linux.resources.memory = {"limit": 4096}
linux.resources.cpu.shares is invalid	.linux.resources.cpu = {"shares": 99999999999}
process.scheduler	.process.scheduler = {"policy": "SCHED_FIFO", "priority": 99}
process.ioPriority	.process.ioPriority = {"class": "IOPRIO_CLASS_RT", "priority": 0}
rootfs|no such file	.root.path = "/no/such/rootfs"
hostname is invalid	.hostname = ("h" * 300)
no source	.mounts += [{"destination": "/x", "type": "bind"}]
/no/such/source	.mounts += [{"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}]
nonsense	.mounts += [{"destination": "/x", "type": "nonsense", "source": "nonsense"}]
/x	.mounts += [{"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=nonsense"]}]
namespaces user	.linux.namespaces += [{"type": "user"}]
linux.namespaces mount is not supported	.linux.namespaces |= map(if .type == "mount" then .path = "/proc/1/ns/mnt" else . end)
linux.namespaces network is invalid	.linux.namespaces += [{"type": "network"}]
linux.namespaces ipc is invalid	.linux.namespaces |= map(if .type == "ipc" then .path = "proc/1/ns/ipc" else . end)
linux.rootfsPropagation is invalid	.linux.rootfsPropagation = "everywhere"
the root itself	.mounts += [{"destination": "/x/..", "type": "tmpfs", "source": "tmpfs"}]
namespaces time	.linux.namespaces += [{"type": "time"}]
/no/such/netns	.linux.namespaces |= map(if .type == "network" then .path = "/no/such/netns" else . end)
linux.namespaces network is invalid: /etc/passwd is no such namespace	.linux.namespaces |= map(if .type == "network" then .path = "/etc/passwd" else . end)
linux.uidMappings	.linux.uidMappings = [{"containerID": 0, "hostID": 1000, "size": 1}]
linux.sysctl kernel.core_pattern	.linux.sysctl = {"kernel.core_pattern": "|/bin/sh"}
no name of a sysctl	.linux.sysctl = {"net.//.//.//.tmp.x": "1"}
net.no.such	.linux.sysctl = {"net.no.such": "1"}
linux.cgroupsPath	.linux.cgroupsPath = "/../../x"
memory.swappiness	.linux.resources.memory = {"swappiness": 1000}
memory.limit	.linux.resources.memory = {"limit": 99, "swap": 1}
cpu.cpus	.linux.resources.cpu = {"cpus": "0;reboot"}
cpu.cpus	.linux.resources.cpu = {"cpus": "9999"}
cpu.quota	.linux.resources.cpu = {"quota": 1, "period": 100000}
unified	.linux.resources.unified = {"../../x": "1"}
hugepageLimits	.linux.resources.hugepageLimits = [{"pageSize": "../x", "limit": 1}]
seccomp	.linux.seccomp = {"defaultAction": "SCMP_ACT_NOTIFY"}
SCMP_NONSENSE|unknown variant|variant	.linux.seccomp = {"defaultAction": "SCMP_NONSENSE"}
argument 9	.linux.seccomp = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}
linux.devices	.linux.devices = [{"path": "/dev/x", "type": "a", "major": 1, "minor": 3}]
hooks.prestart.0.: run /no/such/hook	.hooks = {"prestart": [{"path": "/no/such/hook"}]}
hooks.createRuntime.1. /bin/sh failed .exit code 4.: no network	.hooks = {"createRuntime": [{"path": "/bin/true"}, {"path": "/bin/sh", "args": ["sh", "-c", "echo no network; exit 4"]}]}
hooks.createRuntime.0. /bin/sleep failed .not ended within 1 s	.hooks = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "50"], "timeout": 1}]}
hooks.createRuntime.0..timeout	.hooks = {"createRuntime": [{"path": "/bin/true", "timeout": -1}]}
hooks.poststart.0. /bin/false failed .exit code 1	.hooks = {"poststart": [{"path": "/bin/false"}]}
hooks.poststop.0..path	.hooks = {"poststop": [{"path": "bin/true"}]}
hooks.createContainer	.hooks = {"createContainer": [{"path": "/bin/true"}]}
hooks.startContainer	.hooks = {"startContainer": [{"path": "/bin/true"}]}
ok	.hooks = {"poststop": [{"path": "/bin/false"}]}
linux.intelRdt	.linux.intelRdt = {"closID": "x"}
linux.personality	.linux.personality = {"domain": "LINUX32"}
annotation io.hpk.gpu.*nonsense	.annotations = {"io.hpk.gpu": "nonsense"}
io.hpk.gpu.*no /dev/nvidiactl	.annotations = {"io.hpk.gpu": "nv"}
linux.mountLabel	.linux.mountLabel = "x"
TABLE
echo "1..$count"
exit $failed
