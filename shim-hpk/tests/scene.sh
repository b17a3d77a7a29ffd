# A stock containerd with its CRI plugin in namespaces of its own, on a testbed host, as root; sourced
# by cri/suites.sh, cri/kubelet.sh and nerdctl/run.sh. Handlers runc and hpk, pods on the reference plugin bridge, images from a
# registry on loopback. Nothing is left but what is in $work, which goes at the end.
#
#   enter_scene "$0" "$@"     runs the script again in there, with $work set; first fetches the images
#   start_containerd          returns when its CRI plugin answers; containerd comes back when it dies
# shellcheck shell=bash

tests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${BIN:-/hpk/bin}
socket=/run/containerd/containerd.sock

# await SECONDS WHAT CMD…: until CMD succeeds
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "waited for $what in vain" >&2; return 1; }
        sleep 0.1
    done
}

enter_scene() {
    [ -z "${SCENE:-}" ] || { work=$SCENE; return; }
    work=$(mktemp -d /tmp/cri.XXXXXX)
    trap 'rm -rf "$work"' EXIT
    "$tests/suite-images.sh" fetch "$work" || exit 1
    # Killed with its init: whatever a broken-off run leaves goes with it. (Not exec: the folder goes last.)
    SCENE=$work unshare -m -p -n -f --kill-child --mount-proc --propagation private "$@"
    local status=$?
    find /sys/fs/cgroup -depth -type d \( -path '*/kubepods*' -o -path '*/k8s.io*' \) -exec rmdir {} + 2>/dev/null
    exit $status
}

network() {
    local name
    ip link set lo up
    # A node wants an address and a default route.
    ip link add uplink0 type bridge
    ip address add 192.0.2.10/24 dev uplink0
    ip link set uplink0 up
    ip route add default via 192.0.2.1 dev uplink0
    for name in net.ipv4.ip_forward net.ipv6.conf.all.forwarding; do sysctl -qw $name=1; done
    mkdir "$work/net.d"
    cat >"$work/net.d/10-scene.conflist" <<JSON
{"cniVersion":"1.0.0","name":"scene","plugins":[
 {"type":"bridge","bridge":"scene0","isGateway":true,"ipMasq":true,"promiscMode":true,
  "ipam":{"type":"host-local",
          "ranges":[[{"subnet":"10.88.0.0/16"}],[{"subnet":"2001:db8:4860::/64"}]],
          "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
JSON
}

configuration() {
    cat >"$work/config.toml" <<TOML
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "$socket"
[plugins."io.containerd.cri.v1.runtime"]
drain_exec_sync_io_timeout = "10s"
# Root has no CAP_SYS_RESOURCE in a testbed host: what is lowered would be refused.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "$work/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.hpk]
runtime_type = "io.containerd.hpk.v2"
TOML
}

start_containerd() {
    local place
    # Not on the host's root file system, which is an overlay.
    mount -t tmpfs tmpfs /run
    for place in containerd kubelet cni; do
        mkdir -p /var/lib/$place
        mount -t tmpfs tmpfs /var/lib/$place
    done
    mkdir -p /run/lock
    network
    "$tests/suite-images.sh" serve "$work" || return 1
    configuration
    # Shims are looked up in PATH.
    export PATH=$bin:$PATH SSL_CERT_FILE=$work/ca.pem CONTAINER_RUNTIME_ENDPOINT=unix://$socket
    # The suites kill it and want it back.
    (while :; do
        containerd --config "$work/config.toml" >>"$work/containerd.log" 2>&1 &
        echo $! >"$work/containerd.pid"
        wait $!
        # A suite looks once a second whether it is gone.
        sleep 2
    done) 2>/dev/null &
    await 30 "containerd" ctr version && await 30 "its CRI plugin" cri_answers && return
    tail -20 "$work/containerd.log" >&2
    return 1
}

cri_answers() { ctr plugins ls | grep -qE '^io.containerd.grpc.v1 +cri +.* ok'; }
