#!/bin/bash
# ctr.sh's promises under the former containerd, 1.7; on a testbed host, as root.
#
#   run.sh HANDLER     runc (the reference) or hpk
set -euo pipefail
bin=${BIN:-/hpk/bin}
handler=${1:?usage: run.sh runc|hpk}
work=$(mktemp -d /tmp/ctr17.XXXXXX)
trap 'rm -rf "$work"' EXIT
image=docker.io/library/busybox:latest
skopeo copy -q docker://docker.io/library/busybox:1.37 "docker-archive:$work/image.tar:$image"
PATH=$bin/containerd-1.7:$bin:$PATH RUNTIME=io.containerd.$handler.v2 IMAGE=$image IMAGE_TAR=$work/image.tar \
    ADDRESS=$work/sock bash "$(dirname "$0")/../ctr.sh"
