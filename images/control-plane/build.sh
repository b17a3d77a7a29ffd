#!/usr/bin/env bash
# Builds bin/hpk-control-plane: kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy,
# flanneld and CoreDNS in one static binary, from the module versions pinned in go.mod; and
# bin/cnitool. Four minutes the first time, nothing when nothing changed.
#
#   build.sh                        build what is not cached, link it into bin/
#   build.sh --arch GOARCH FOLDER   hpk-control-plane and cnitool for an architecture, into a folder
#   build.sh --tidy                 renew go.mod and go.sum after a change of versions or imports
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/../lib.sh"
HERE=$IMAGES/control-plane
[ -z "${GO:-}" ] || PATH=$(dirname "$GO"):$PATH
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"

# Flannel's main program is a package main, which can't be imported: copied here as a package, with
# its flags parsed when it is chosen instead of at every start. Its backends that need C or a
# cloud's SDK are left out.
write_flanneld() { # DIR
    local source
    source=$(module_field "$1/go.mod" github.com/flannel-io/flannel Dir)
    mkdir -p "$1/flanneld"
    sed -e 's/^package main$/package flanneld/' \
        -e 's/^func init() {$/func parseFlags() {/' \
        -e 's/^func main() {$/func Main() {\n\tparseFlags()/' \
        -e '/backend\/\(udp\|tencentvpc\)"$/d' \
        "$source/main.go" >"$1/flanneld/flanneld.go"
}

compile() { # DIR
    local dir=$1 module=$1/src kubernetes major minor flags package time
    mkdir "$module"
    cp "$HERE"/*.go "$HERE/go.mod" "$HERE/go.sum" "$module"
    step "fetch Go modules" write_flanneld "$module"
    kubernetes=$(module_version "$module/go.mod" k8s.io/kubernetes)
    IFS=. read -r major minor _ <<<"${kubernetes#v}"
    time=$(sed -n 's/.*"Time":"\([^"]*\)".*/\1/p' "$(module_field "$module/go.mod" k8s.io/kubernetes Info)")
    flags="-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$(module_version "$module/go.mod" github.com/flannel-io/flannel)"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=$major -X $package.gitMinor=$minor"
        flags+=" -X $package.gitCommit=$kubernetes -X $package.gitTreeState=clean -X $package.buildDate=$time"
    done
    flags+=" -X github.com/coredns/coredns/coremain.GitCommit=$(module_version "$module/go.mod" github.com/coredns/coredns)"
    (cd "$module" && step "compile hpk-control-plane (Kubernetes $kubernetes, $(go env GOARCH))" \
        go build -trimpath -buildvcs=false -ldflags "$flags" -o "$dir/hpk-control-plane" .)
    rm -r "$module"
}

compile_tools() { # DIR
    (cd "$IMAGES/tools" && step "compile cnitool and mksif ($(go env GOARCH))" \
        go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$1/" ./mksif github.com/containernetworking/cni/cnitool)
}

if [ "${1:-}" = --tidy ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp "$HERE"/*.go "$HERE/go.mod" "$HERE/go.sum" "$work"
    write_flanneld "$work"
    (cd "$work" && go mod tidy)
    cp "$work/go.mod" "$work/go.sum" "$HERE"
    exit
fi

folder=$CHECKOUT/bin
if [ "${1:-}" = --arch ]; then
    export GOARCH=$2
    folder=$3
fi
main=$HPK_CACHE/go/$({ go version; go env GOARCH; cat "$HERE"/*.go "$HERE/go.mod" "$HERE/go.sum"; declare -f write_flanneld compile; } | key)
tools=$HPK_CACHE/go/tools-$({ go version; go env GOARCH; cat "$IMAGES"/tools/go.mod "$IMAGES"/tools/go.sum "$IMAGES"/tools/*/*.go; } | key)
ensure "$main" "control plane" compile
ensure "$tools" "Go tools" compile_tools
keep_newest "$HPK_CACHE/go" 8
publish "$main/hpk-control-plane" "$folder/hpk-control-plane"
publish "$tools/cnitool" "$folder/cnitool"
# The build's own: it runs on this machine.
[ "${1:-}" = --arch ] || publish "$tools/mksif" "$folder/mksif"
