#!/bin/bash
# A stock kubelet on a stock containerd's CRI plugin, pods of a RuntimeClass; on a testbed host, as root.
#
#   kubelet.sh HANDLER     runc (the reference) or hpk
#
# A line a promise, "ok N - …" or "not ok N - …"; exits 1 if one failed. The kubelet (bin/kubelet, see
# build.sh), the control plane and the shim come from /hpk/bin. KEEP=FOLDER keeps the logs.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=../scene.sh
. "$here/../scene.sh"
handler=${1:?usage: kubelet.sh runc|hpk}
enter_scene "$0" "$@"

DIR=$work/cluster
CONTROL_PLANE=$bin/hpk-control-plane
node_ip=192.0.2.10
cluster_ip=10.43.0.1
# shellcheck source=../../../kubelet/tests/control-plane.sh
. "$tests/../../kubelet/tests/control-plane.sh"
count=0
failed=0

# A kubelet sets some of the machine's sysctls, which are not this test's to change: it sets these.
protect_machine() {
    local name
    mkdir "$work/sysctls"
    for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
        cat "/proc/sys/$name" >"$work/sysctls/${name##*/}"
        mount --bind "$work/sysctls/${name##*/}" "/proc/sys/$name"
    done
}

start_kubelet() {
    cat >"$DIR/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $node_ip
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $DIR/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $DIR/pki/node.crt
tlsPrivateKeyFile: $DIR/pki/node.key
containerRuntimeEndpoint: unix://$socket
cgroupDriver: cgroupfs
clusterDomain: cluster.local
clusterDNS: [10.43.0.10]
resolvConf: /etc/resolv.conf
failSwapOn: false
# A testbed host: cgroup v1, and file systems that tell of no quota.
failCgroupV1: false
localStorageCapacityIsolation: false
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}
syncFrequency: 10s
YAML
    daemon kubelet "$bin/kubelet" --config "$DIR/kubelet.yaml" --kubeconfig "$DIR/pki/node.conf" \
        --hostname-override node1 --node-ip $node_ip
}

check() { # NAME CMD…
    local name=$1
    shift
    count=$((count + 1))
    if "$@" >"$DIR/log/check.log" 2>&1; then echo "ok $count - $name"; else
        failed=1
        echo "not ok $count - $name"
        tail -8 "$DIR/log/check.log" | sed 's/^/#   /'
    fi
}
k() { timeout 60 kubectl "$@"; }
# eventually CMD…: a shell line that becomes true within a minute.
eventually() { timeout 60 bash -c "until $1; do sleep 0.2; done"; }

objects() {
    cat <<YAML
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: tried}
handler: $handler
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  runtimeClassName: tried
  terminationGracePeriodSeconds: 3
  initContainers:
  - {name: init, image: $image, command: [sh, -c, "echo from-init > /shared/file"], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: $image
    command: [sh, -c, "cat /shared/file /etc/settings/greeting; echo; echo \$GREETING \$POD_NAME; touch /ready; exec sleep 3600"]
    env:
    - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: settings, mountPath: /etc/settings}]
  - {name: side, image: $image, command: [sleep, "3600"], volumeMounts: [{name: shared, mountPath: /shared}]}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  runtimeClassName: tried
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, seccompProfile: {type: RuntimeDefault}, sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]}
  containers:
  - name: main
    image: $image
    command: [sleep, "3600"]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  runtimeClassName: tried
  restartPolicy: Never
  containers:
  - {name: main, image: $image, command: [dd, if=/dev/zero, of=/dev/null, bs=90M, count=1], resources: {limits: {memory: 20Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: flaky}
spec:
  runtimeClassName: tried
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: $image, command: [sh, -c, "sleep 1; exit 3"]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec:
      runtimeClassName: tried
      restartPolicy: Never
      containers: [{name: main, image: $image, command: [sh, -c, "exit 0"]}]
YAML
}

sandbox() { ctr -n k8s.io container ls -q "labels.\"io.kubernetes.pod.name\"==$1,labels.\"io.cri-containerd.kind\"==sandbox"; }
# Where containerd reaches the shim of each of the pod's three: the sandbox and two containers (its third, the
# init container, may be gone).
one_shim_for_the_pod() {
    local id addresses
    addresses=$(for id in $(ctr -n k8s.io container ls -q 'labels."io.kubernetes.pod.name"==web'); do
        jq -r .address "/run/containerd/io.containerd.runtime.v2.task/k8s.io/$id/bootstrap.json" 2>/dev/null
    done | sort | uniq -c)
    echo "$addresses"
    awk '{lines++; of = $1} END {exit !(lines == 1 && of == 3)}' <<<"$addresses"
}
answers() { [ "$("${@:2}")" = "$1" ] || { "${@:2}"; return 1; }; }
limits() {
    local id pid
    id=$(k get pod web -o jsonpath='{.status.containerStatuses[?(@.name=="main")].containerID}')
    pid=$(ctr -n k8s.io task ls | awk -v id="${id##*/}" '$1 == id {print $2}')
    local v1 v2
    v1=/sys/fs/cgroup/memory$(awk -F: '$2 == "memory" {print $3}' "/proc/$pid/cgroup")/memory.limit_in_bytes
    v2=/sys/fs/cgroup$(awk -F: '$1 == 0 {print $3}' "/proc/$pid/cgroup")/memory.max
    answers 67108864 cat "$([ -e "$v1" ] && echo "$v1" || echo "$v2")"
}
kill_and_await() { # PID-FILE
    local pid
    pid=$(cat "$1")
    kill -9 "$pid"
    # Whoever started it has it reaped.
    eventually "[ ! -e /proc/$pid ]"
}
is_strict() {
    answers '1234 2345 3456' k exec strict -- sh -c 'echo $(id -u) $(id -g) $(id -G | tr " " "\n" | grep 3456)' &&
        k exec strict -- grep -q 'CapEff:.*0000000000000000' /proc/self/status &&
        k exec strict -- grep -q 'Seccomp:.*2' /proc/self/status &&
        k exec strict -- grep -q 'NoNewPrivs:.*1' /proc/self/status &&
        ! k exec strict -- touch /x &&
        answers 80 k exec strict -- cat /proc/sys/net/ipv4/ip_unprivileged_port_start &&
        k exec strict -- sh -c 'ps | grep -q "[p]ause"'
}

mkdir -p "$DIR"/{log,pid}
export DIR work
keep() { [ -z "${KEEP:-}" ] || cp -r "$DIR/log" "$work/containerd.log" "$KEEP/"; }
trap keep EXIT
protect_machine
start_containerd || exit 1
(pki "$DIR/pki") || exit 1
(control_plane) || { tail -5 "$DIR"/log/*; exit 1; }
export KUBECONFIG=$DIR/pki/admin.conf
image=ghcr.io/containerd/busybox:1.36
start_kubelet
check 'the node registers and is Ready' eventually 'kubectl wait --for=condition=Ready node/node1 --timeout=30s'
check 'the default service account is there' k wait --for=create serviceaccount/default --timeout=30s
objects | k apply -f - >/dev/null || exit 1
check 'a pod with an init container, a ConfigMap, an emptyDir and a probe is Ready' k wait --for=condition=Ready pod/web --timeout=55s
check 'its log has what it wrote, with what it was given' \
    eventually 'kubectl logs web -c main | grep -q "^hello web$" && kubectl logs web -c main | grep -q "^from-init$"'
check 'its containers share one shim' one_shim_for_the_pod
check 'its memory limit is in force' limits
check 'exec: output and exit code' bash -c '[ "$(kubectl exec web -c side -- sh -c "cat /shared/file; exit 5")" = from-init ]; kubectl exec web -c side -- sh -c "exit 5"; [ $? = 5 ]'
check 'exec: stdin' bash -c '[ "$(echo through | kubectl exec -i web -c side -- cat)" = through ]'
check 'exec: a terminal' bash -c 'script -qec "timeout 30 kubectl exec -it web -c side -- tty" /dev/null </dev/null | grep -q /dev/pts/'
check 'figures of the container' eventually \
    "kubectl get --raw /api/v1/nodes/node1/proxy/stats/summary?only_cpu_and_memory=true | jq -e '.pods[] | select(.podRef.name == \"web\") | .containers[] | select(.name == \"main\") | .memory.workingSetBytes > 0'"
check 'a strict pod is Ready' k wait --for=condition=Ready pod/strict --timeout=55s
check 'user, groups, capabilities, seccomp, read-only root, sysctl and shared processes are as asked' is_strict
check 'a lack of memory is told as such' eventually \
    '[ "$(kubectl get pod greedy -o jsonpath="{.status.containerStatuses[0].state.terminated.reason}")" = OOMKilled ]'
check 'a container that ends is started again' eventually \
    '[ "$(kubectl get pod flaky -o jsonpath="{.status.containerStatuses[0].restartCount}")" -ge 1 ]'
check 'its exit code is told' eventually \
    '[ "$(kubectl get pod flaky -o jsonpath="{.status.containerStatuses[0].lastState.terminated.exitCode}")" = 3 ]'
check 'a Job completes' k wait --for=condition=Complete job/job --timeout=55s
kill_and_await "$DIR/pid/kubelet"
kill_and_await "$work/containerd.pid"
# It gives up without a runtime.
await 30 'containerd' ctr version
start_kubelet
check 'kill -9 of kubelet and containerd ends no pod' eventually \
    'kubectl exec web -c main -- true && [ "$(kubectl get pod web -o jsonpath="{.status.containerStatuses[*].restartCount}")" = "0 0" ]'
shim=$(pgrep -f "containerd-shim-$handler-v2 .*$(sandbox strict)")
check 'a pod whose shim is killed comes back' bash -c \
    "kill -9 $shim && for _ in \$(seq 300); do [ \"\$(kubectl get pod strict -o jsonpath='{.status.containerStatuses[0].restartCount}')\" -ge 1 ] && kubectl exec strict -- true && exit; sleep 0.2; done; kubectl describe pod strict | tail; exit 1"
check 'deletion ends within its grace' k delete pod web strict flaky greedy --timeout=50s
check 'deletion of the Job ends' k delete job job --timeout=50s
check 'nothing of the pods is left' eventually \
    "! pgrep -f '[c]ontainerd-shim-$handler-v2' && ! grep -q k8s.io /proc/self/mounts && [ -z \"\$(ls /run/containerd/io.containerd.runtime.v2.task/k8s.io)\" ] && ! find /sys/fs/cgroup -path '*kubepods*' -name 'pod*' | grep ."
echo "1..$count"
exit $failed
