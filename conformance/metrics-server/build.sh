#!/usr/bin/env bash
# Builds the stock metrics-server, at the version that go.mod names, as an OCI layout in
# $HPK_CACHE/metrics-server/current, with images.list, as images/test-images/build.sh does; and puts
# its manifests into bin/metrics-server. Three minutes on two cores the first time, which is why
# `make test` leaves it out; nothing when nothing changed.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../../images/lib.sh"
# shellcheck source=images/oci.sh
. "$IMAGES/oci.sh"
need jq jq zstd zstd
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"
MODULE=sigs.k8s.io/metrics-server
VERSION=$(module_version "$HERE/go.mod" "$MODULE")

compile() { # DIR
    local root=$1/.root
    mkdir "$root"
    (cd "$HERE" && go build -trimpath -buildvcs=false \
        -ldflags "-s -w -X k8s.io/client-go/pkg/version.gitVersion=$VERSION" \
        -o "$root/metrics-server" "$MODULE/cmd/metrics-server")
    oci_begin "$1/metrics-server"
    oci_layer "$1/metrics-server" "$root" zstd
    oci_end "$1/metrics-server" '{"User":"65534","Entrypoint":["/metrics-server"],"Labels":{"org.opencontainers.image.title":"metrics-server"}}'
    rm -r "$root"
    cp -r --no-preserve=mode "$(module_field "$HERE/go.mod" "$MODULE" Dir)/manifests" "$1/manifests"
    printf 'metrics-server\tmetrics-server/metrics-server:%s\n' "$VERSION" >"$1/images.list"
}

out=$HPK_CACHE/metrics-server/set-$({ go version; cat "$HERE/go.mod" "$HERE/go.sum" "$HERE/build.sh" "$IMAGES/oci.sh"; } | key)
ensure "$out" "metrics-server" compile
ln -sfn "${out##*/}" "$HPK_CACHE/metrics-server/current.new"
mv -fT "$HPK_CACHE/metrics-server/current.new" "$HPK_CACHE/metrics-server/current"
keep_newest "$HPK_CACHE/metrics-server" 2 "set-*"
rm -rf "$CHECKOUT/bin/metrics-server"
cp -r "$out/manifests" "$CHECKOUT/bin/metrics-server"
