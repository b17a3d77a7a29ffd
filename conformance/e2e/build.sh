#!/usr/bin/env bash
# Builds Kubernetes' end-to-end suite at the control plane's version, and ginkgo that runs it, into
# $HPK_CACHE/e2e/current. Ten minutes the first time, nothing when nothing changed.
#
# go.mod was made by `go get -t k8s.io/kubernetes/test/e2e@VERSION` and `go get -tool` for the
# programs that images.sh compiles, over the `replace` lines of images/control-plane/go.mod.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../../images/lib.sh"
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"

compile() { # DIR
    (cd "$HERE" && go test -c -vet=off -trimpath -ldflags '-s -w' -o "$1/e2e.test" k8s.io/kubernetes/test/e2e &&
        go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$1/ginkgo" github.com/onsi/ginkgo/v2/ginkgo)
}

out=$HPK_CACHE/e2e/set-$({ cat "$HERE/go.mod" "$HERE/go.sum" "$HERE/build.sh"; go version; } | key)
ensure "$out" "Kubernetes' end-to-end suite" compile
ln -sfn "${out##*/}" "$HPK_CACHE/e2e/current.new"
mv -fT "$HPK_CACHE/e2e/current.new" "$HPK_CACHE/e2e/current"
keep_newest "$HPK_CACHE/e2e" 2 "set-*"
