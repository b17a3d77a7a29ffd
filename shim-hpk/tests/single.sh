#!/bin/bash
# The shim under a containerd of a user without subordinate ids: in a user namespace in which root, that user, is all
# there is. As such a user on a testbed host; containerd, ctr, the shim and hpk-pause in PATH; IMAGE_TAR is an archive
# of IMAGE. Prints "ok N - name" or "not ok N - name".
set -u
if [ -z "${SINGLE_SCENE:-}" ]; then
    # With its init goes whatever a broken-off run leaves.
    SINGLE_SCENE=1 exec unshare --user --map-root-user --mount --net --pid --fork --kill-child --mount-proc bash "$0" "$@"
fi
image=${IMAGE:-docker.io/library/busybox:latest}
work=$(mktemp -d /tmp/single.XXXXXX)
failed=0
count=0
ctr() { timeout 60 ctr --address "$work/sock" "$@"; }
run() { ctr run --rm --snapshotter native --runtime io.containerd.hpk.v2 "$@"; }

mount -t tmpfs tmpfs /run || exit 1
ip link set lo up
cat >"$work/config.toml" <<TOML
version = 3
root = "$work/data"
state = "$work/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"]
[grpc]
address = "$work/sock"
uid = 0
gid = 0
[ttrpc]
address = "$work/sock.ttrpc"
TOML
containerd --config "$work/config.toml" >"$work/log" 2>&1 &
daemon=$!
trap 'kill $daemon; wait $daemon 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr image import --local --snapshotter native "${IMAGE_TAR:?}" >/dev/null || { tail -5 "$work/log"; exit 1; }

check() {
    local promise=$1; shift
    count=$((count + 1))
    if ("$@") >"$work/out" 2>&1; then echo "ok $count - $promise"; return; fi
    failed=1
    echo "not ok $count - $promise"
    tail -20 "$work/out" | sed 's/^/#   /'
}
is() { [ "$1" = "$2" ] || { echo "got: $1"; echo "want: $2"; return 1; }; }

root_is_all_there_is() {
    is "$(awk '{print $1, $3}' /proc/self/uid_map)" '0 1' && is "$(run "$image" root sh -c 'id -u; echo x >/x && cat /x')" '0
x'
}
another_is_refused() {
    local said
    said=$(run --user "$1" "$image" other true 2>&1) && { echo "it ran"; return 1; }
    ctr container rm other >/dev/null 2>&1
    grep -q "$2" <<<"$said" || { echo "$said"; return 1; }
}
by_the_annotation_it_is_root() {
    is "$(run --user 1000:1000 --annotation io.hpk.squash-ids=true "$image" squashed sh -c 'id -u; grep CapEff /proc/self/status')" '0
CapEff:	0000000000000000'
}
check 'a container runs as root' root_is_all_there_is
check 'another user is refused by name' another_is_refused 1000:0 'process.user.uid 1000 is not supported'
check 'another group is refused by name' another_is_refused 0:1000 'process.user.gid 1000 is not supported'
check 'by the annotation it runs as root, without capabilities' by_the_annotation_it_is_root
echo "1..$count"
exit $failed
