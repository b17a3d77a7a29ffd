#!/bin/bash
# client/tests/pod on a testbed host, as root: a pod as the kubelet drives it.
#
#   pod.sh SHIM [FILTER…]     SHIM: a shim's binary, ours or containerd-shim-runc-v2
#
# Wants hpk-shim-pod-test and hpk-pause in BIN (/hpk/bin). Prints what the test binary prints.
set -euo pipefail
bin=${BIN:-/hpk/bin}
shim=${1:?usage: pod.sh SHIM [FILTER…]}
shift
# Not on the host's root file system, which is an overlay.
work=$(mktemp -d /tmp/pod.XXXXXX)
trap 'rm -rf "$work"' EXIT
skopeo copy -q docker://docker.io/library/busybox:1.37 "oci:$work/image:1"
umoci unpack --image "$work/image:1" "$work/bundle" >/dev/null
only=()
# What Apptainer is asked for is not asked of runc.
[[ $shim != *runc* ]] || only=(--skip apptainer)
mkdir "$work/scratch"
HPK_TEST_SHIM=$shim HPK_TEST_ROOTFS=$work/bundle/rootfs HPK_TEST_PAUSE=$bin/hpk-pause HPK_TEST_DIR=$work/scratch \
    "$bin/hpk-shim-pod-test" --ignored --test-threads 1 "${only[@]}" "$@"
