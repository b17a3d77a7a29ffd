#!/usr/bin/env bash
# Builds the images that the testbed's registry serves, from Debian packages and Go modules, as OCI
# layouts in $HPK_CACHE/test-images/current, with images.list: a layout's folder, a tab, and the
# name it is pushed under, a line each. Two minutes the first time, nothing when nothing changed.
#
#   build.sh [--allow-missing]   --allow-missing: without pause where bin/hpk-pause is missing
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../lib.sh"
# shellcheck source=images/oci.sh
. "$IMAGES/oci.sh"
# shellcheck source=images/test-images/debs.sh
. "$HERE/debs.sh"
# shellcheck source=images/test-images/recipes.sh
. "$HERE/recipes.sh"

# Image, then the names people use for it.
IMAGES_AND_NAMES='
busybox library/busybox:1.36 library/busybox:1.37 library/busybox:latest e2e-test-images/busybox:1.37.0-1
nginx library/nginx:1.27 library/nginx:latest e2e-test-images/nginx:1.27-0
agnhost e2e-test-images/agnhost:2.63.0
netshoot nicolaka/netshoot:latest
iperf3 networkstatic/iperf3:latest
sockperf hpk-test/sockperf:latest
pause pause:3.10
'

allow_missing=
case ${1:-} in
--allow-missing) allow_missing=1 ;;
"") ;;
*) die "usage: build.sh [--allow-missing]" ;;
esac
need jq jq zstd zstd dpkg-deb dpkg /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"
if ! [ -x "$CHECKOUT/bin/hpk-pause" ]; then
    [ -n "$allow_missing" ] || die "bin/hpk-pause is missing: run make binaries first, or give --allow-missing"
    echo "warning: bin/hpk-pause is missing: no pause image" >&2
    IMAGES_AND_NAMES=$(sed '/^pause /d' <<<"$IMAGES_AND_NAMES")
fi

build_all() { # DIR
    local dir=$1 image names name
    WORK=$dir/.work
    mkdir "$WORK"
    step "read Debian's index" debs_begin "$WORK/debs"
    DEBS=$WORK/debs
    while read -r image names; do
        [ -n "$image" ] || continue
        step "image $image" "image_$image" "$dir/$image"
        for name in $names; do
            printf '%s\t%s\n' "$image" "$name" >>"$dir/images.list"
        done
    done <<<"$IMAGES_AND_NAMES"
    chmod -R u+w "$WORK"
    rm -rf "$WORK"
}

out=$HPK_CACHE/test-images/$({ echo "$IMAGES_AND_NAMES"; cat "$HERE"/*.sh "$IMAGES/oci.sh" "$IMAGES/control-plane/go.sum"
    go version; [ ! -x "$CHECKOUT/bin/hpk-pause" ] || cat "$CHECKOUT/bin/hpk-pause"; } | key)
[ -e "$out" ] || step "test images" build_once "$out" build_all
ln -sfn "${out##*/}" "$HPK_CACHE/test-images/current.new"
mv -fT "$HPK_CACHE/test-images/current.new" "$HPK_CACHE/test-images/current"
keep_newest "$HPK_CACHE/test-images" 2
