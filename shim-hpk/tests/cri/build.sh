#!/usr/bin/env bash
# Builds bin/critest, bin/kubelet and bin/nnp (of a test image) at the versions that go.mod names, and containerd's CRI suite, at the
# version of its client suite, as bin/containerd-cri-test. Four minutes the first time.
#
#   build.sh [kubelet]     all of them, or that one alone
#
# go.mod: `go get` of cri-tools and k8s.io/kubernetes over the `replace` lines of images/control-plane/go.mod.
set -euo pipefail
cd "$(dirname "$0")"
bin=$PWD/../../../bin
export CGO_ENABLED=0
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
IFS=. read -r major minor _ <<<"${version#v}"
flags='-s -w'
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
done
go build -trimpath -buildvcs=false -ldflags "$flags" -o "$bin/kubelet" ./kubelet
if [ "${1:-}" = kubelet ]; then exit; fi
go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$bin/nnp" k8s.io/kubernetes/test/images/nonewprivs
go test -c -vet=off -trimpath -ldflags '-s -w' -o "$bin/critest" sigs.k8s.io/cri-tools/cmd/critest
cd ../containerd
exec go test -c -vet=off -trimpath -ldflags '-s -w' -o "$bin/containerd-cri-test" \
    github.com/containerd/containerd/v2/integration
