#!/usr/bin/env bash
# The swap test: hpk-kubelet, unchanged, on the stock runc shim and the stock bridge plugin, as root.
#
#   swap.sh up DIR            control plane and kubelet in namespaces of their own, state under DIR
#   swap.sh exec DIR CMD…     run a command in there (kubectl is set up)
#   swap.sh kubelet DIR start|stop|kill9
#   swap.sh down DIR          everything goes
#   swap.sh test              up, a few pods, down; exit code 0 if all is well
#
# Wants: root, etcd, containerd-shim-runc-v2 + runc, CNI plugins, kubectl, openssl, docker-registry,
# skopeo, squashfuse, squashfs-tools. Settings by environment:
#   HPK_BIN       folder with hpk-kubelet, hpk-logger, hpk-pause (default: bin/ of this checkout)
#   CONTROL_PLANE hpk-control-plane (default: $HPK_BIN/hpk-control-plane)
#   RUNTIME       shim binary (default: containerd-shim-runc-v2 on PATH)
#   CNI_BIN       plugins (default: /usr/lib/cni or /opt/cni/bin)
#   ROOTFS        a root file system to run the kubelet in (with the shim's own tools, e.g. apptainer)
#   TEST_IMAGES   OCI layouts, one folder per image (default: the build cache's)
# shellcheck disable=SC2016 # expanded by the inner shell
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
HPK_BIN=${HPK_BIN:-$root/bin}
CONTROL_PLANE=${CONTROL_PLANE:-$HPK_BIN/hpk-control-plane}
RUNTIME=${RUNTIME:-$(command -v containerd-shim-runc-v2 || true)}
CNI_BIN=${CNI_BIN:-$([ -d /usr/lib/cni ] && echo /usr/lib/cni || echo /opt/cni/bin)}
TEST_IMAGES=${TEST_IMAGES:-${HPK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpk}/test-images/current}
node_ip=192.0.2.10
cluster_ip=10.43.0.1

die() { echo "swap.sh: $*" >&2; exit 1; }

# await SECONDS WHAT CMD…: until CMD succeeds
await() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "waited for $what in vain"
    sleep 0.1
  done
}

# shellcheck source=control-plane.sh
. "$here/control-plane.sh"

# --- inside the namespaces ------------------------------------------------------------------------

# With ROOTFS: the command in a mount namespace with that root, which sees the same state. (Apptainer
# refuses to work in a mere chroot.)
rooted() {
  if [ -z "${ROOTFS:-}" ]; then echo env; else
    echo "nsenter -t $(cat "$DIR/pid/root") -m -- env PATH=/usr/local/bin:/usr/bin:/usr/sbin"
  fi
}

prepare_rootfs() {
  local dir
  mount --bind "$ROOTFS" "$ROOTFS" # so that it is a mount point
  for dir in dev proc sys run var/lib/hpk; do
    mkdir -p "$ROOTFS/$dir"; mount --rbind "/$dir" "$ROOTFS/$dir"
  done
  for dir in "$DIR" "$HPK_BIN" ${BIND_DIRS:-}; do
    mkdir -p "$ROOTFS/$dir"; mount --rbind "$dir" "$ROOTFS/$dir"
  done
  daemon root unshare --mount sh -c \
    "cd $ROOTFS && mkdir -p .old && pivot_root . .old && umount -l .old && touch '$DIR/rooted' && exec sleep infinity"
  await 10 "the root file system" test -e "$DIR/rooted"
}

start_kubelet() {
  # shellcheck disable=SC2046 # words are meant
  daemon kubelet $(rooted) RUST_LOG="${RUST_LOG:-info,hpk_kubelet=debug}" "$HPK_BIN/hpk-kubelet" \
    --kubeconfig "$DIR/pki/node.conf" --node-name node1 --node-ip $node_ip \
    --root-dir /var/lib/hpk/kubelet --run-dir /run/hpk --cni-conf-dir "$DIR/net.d" \
    --cni-bin-dir "$CNI_BIN" --cni-cache-dir /var/lib/hpk/cni/cache --runtime "$RUNTIME" \
    --pause-binary "$HPK_BIN/hpk-pause" --image-store "$DIR/store" --registries "$DIR/registries.yaml" \
    --cluster-dns 10.43.0.10 --tls-cert-file "$DIR/pki/node.crt" --tls-private-key-file "$DIR/pki/node.key" \
    --client-ca-file "$DIR/pki/ca.crt" --capacity cpu=8,memory=8Gi,pods=110 \
    --pod-log-dir "$DIR/pods" --logger "$HPK_BIN/hpk-logger" --address $node_ip
}

inside() {
  mount -t tmpfs run /run
  mount --bind "$DIR/lib" /var/lib/hpk
  [ -z "${ROOTFS:-}" ] || prepare_rootfs
  ip link set lo up
  ip link add uplink0 type bridge
  ip addr add $node_ip/24 dev uplink0
  ip link set uplink0 up
  ip route add default via 192.0.2.1 dev uplink0
  sysctl -qw net.ipv4.ip_forward=1
  daemon registry docker-registry serve "$DIR/registry.yml"
  control_plane
  await 10 "the registry" curl -fs http://127.0.0.1:5000/v2/
  local image
  for image in "$TEST_IMAGES"/*/; do
    image=$(basename "$image")
    skopeo copy -q --dest-tls-verify=false "oci:$TEST_IMAGES/$image" \
      "docker://127.0.0.1:5000/library/$image:latest"
  done
  start_kubelet
  touch "$DIR/up"
  exec sleep infinity
}

# --- commands -------------------------------------------------------------------------------------

in_ns() { local pid; pid=$(cat "$DIR/init.pid"); nsenter -t "$pid" -n -m -p -- "$@"; }

up() {
  [ "$(id -u)" = 0 ] || die "wants root"
  for f in "$HPK_BIN/hpk-kubelet" "$HPK_BIN/hpk-pause" "$CONTROL_PLANE" "$RUNTIME" "$CNI_BIN/bridge" \
    "$TEST_IMAGES/busybox"; do
    [ -x "$f" ] || die "$f is not there"
  done
  mkdir -p "$DIR"/{log,pid,lib,etcd,net.d,pods,store,registry} /var/lib/hpk
  chmod 700 "$DIR"
  (pki "$DIR/pki")
  cat >"$DIR/registry.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $DIR/registry}}
http: {addr: 127.0.0.1:5000}
YAML
  printf 'mirrors:\n  "*":\n    endpoint: ["http://127.0.0.1:5000"]\n' >"$DIR/registries.yaml"
  cat >"$DIR/net.d/10-swap.conflist" <<JSON
{"cniVersion":"1.0.0","name":"swap","plugins":[
 {"type":"bridge","bridge":"swap0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"/var/lib/hpk/cni/ipam","ranges":[[{"subnet":"10.244.1.0/24"}]],
          "routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
JSON
  rm -f "$DIR/up" "$DIR/rooted"
  export DIR HPK_BIN CONTROL_PLANE RUNTIME CNI_BIN TEST_IMAGES ROOTFS=${ROOTFS:-} BIND_DIRS=${BIND_DIRS:-}
  setsid unshare --net --mount --pid --fork --kill-child --mount-proc \
    "$here/swap.sh" inside >"$DIR/log/inside.log" 2>&1 </dev/null &
  echo $! >"$DIR/unshare.pid"
  await 90 "everything to be up; what it said is in $DIR/log" is_up_or_ended
  [ -e "$DIR/up" ] || { cat "$DIR/log/inside.log" >&2; die "it ended"; }
  pgrep -P "$(cat "$DIR/unshare.pid")" | head -1 >"$DIR/init.pid"
}

is_up_or_ended() { [ -e "$DIR/up" ] || ! kill -0 "$(cat "$DIR/unshare.pid")"; }

down() {
  [ -e "$DIR/unshare.pid" ] || return 0
  local pid; pid=$(cat "$DIR/unshare.pid")
  # Its child is the namespaces' init, and dies with it; with that, all in there.
  kill -9 "$pid" 2>/dev/null || true
  await 10 "the end of process $pid" is_gone "$pid"
  rm -f "$DIR"/{unshare.pid,init.pid,up}
}

# Ended, or a zombie that whoever started it hasn't reaped, and no process left in its namespaces.
is_gone() {
  ! grep -qs '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status" || return 1
  ! pgrep -f -- "$DIR/" >/dev/null
}

kubelet() {
  case $1 in
    start) in_ns env DIR="$DIR" HPK_BIN="$HPK_BIN" ROOTFS="${ROOTFS:-}" RUNTIME="$RUNTIME" CNI_BIN="$CNI_BIN" \
      "$here/swap.sh" start-kubelet ;;
    stop) in_ns kill "$(cat "$DIR/pid/kubelet")" ;;
    kill9) in_ns kill -9 "$(cat "$DIR/pid/kubelet")" ;;
  esac
}

run_in() { in_ns env KUBECONFIG="$DIR/pki/admin.conf" "$@"; }
limited() { run_in timeout 60 "$@"; }

# --- the test -------------------------------------------------------------------------------------

check() { # NAME CMD…
  local name=$1; shift
  if "$@" >"$DIR/log/check.log" 2>&1; then echo "Passed  $name"; else
    echo "Failed  $name"; sed 's/^/        /' "$DIR/log/check.log" | tail -5; failed=1
  fi
}

run_test() {
  DIR=$(mktemp -d /tmp/hpk-swap.XXXXXX); failed=0
  trap 'down; rm -rf "$DIR"; rmdir /var/lib/hpk 2>/dev/null || true' EXIT
  up
  k() { limited kubectl "$@"; }
  check "the node registers" k wait --for=create node/node1 --timeout=30s
  check "the node is Ready" k wait --for=condition=Ready node/node1 --timeout=30s
  check "the default service account is there" k wait --for=create serviceaccount/default --timeout=30s
  k apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers:
  - {name: init, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo from-init > /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "cat /shared/file /etc/settings/greeting; echo; echo $GREETING $POD_NAME; exec sleep 3600"]
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: settings, mountPath: /etc/settings}]
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, "exit 0"]}]
YAML
  check "a pod with an init container, a ConfigMap and an emptyDir is Ready" \
    k wait --for=condition=Ready pod/web --timeout=40s
  check "its log has what it wrote, with what it was given" limited sh -c \
    'until kubectl logs web | grep -q "^hello web$"; do sleep 0.1; done; kubectl logs web | grep -q "^from-init$"'
  check "a Job completes" k wait --for=condition=Complete job/job --timeout=40s
  kubelet kill9
  check "kill -9 ends the kubelet and no pod" limited sh -c \
    "while grep -qs '^State:[[:space:]]*[^Z[:space:]]' /proc/$(cat "$DIR/pid/kubelet")/status; do sleep 0.1; done; pgrep -f '^sleep 3600'"
  kubelet start
  # An exec goes through the new kubelet: once it works, the pod was adopted.
  check "the next one adopts the pod, whose program ran on" limited sh -c \
    'until kubectl exec web -- true; do sleep 0.1; done
     [ "$(kubectl get pod web -o jsonpath="{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")" = "0 true" ]'
  check "deletion ends within its grace" k delete pod web --grace-period=2 --timeout=15s
  check "nothing of the pod is left" limited sh -c \
    "while find $DIR/pods /run/netns -name '*_web_*' -o -name 'hpk-*' | grep -q .; do sleep 0.1; done; ! pgrep -f '^sleep 3600'"
  exit $failed
}

case ${1:-} in
  up) DIR=$(mkdir -p "$2" && cd "$2" && pwd); up ;;
  down) DIR=$(cd "$2" && pwd); down ;;
  exec) DIR=$(cd "$2" && pwd); shift 2; run_in "$@" ;;
  kubelet) DIR=$(cd "$2" && pwd); kubelet "$3" ;;
  inside) inside ;;
  start-kubelet) start_kubelet ;;
  test) run_test ;;
  *) sed -n '2,17p' "$0"; exit 2 ;;
esac
