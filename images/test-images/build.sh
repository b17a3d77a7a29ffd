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
nginx library/nginx:1.27 library/nginx:latest e2e-test-images/nginx:1.27-0 e2e-test-images/nginx:1.15-4
nonroot e2e-test-images/nonroot:1.5
agnhost e2e-test-images/agnhost:2.63.0 e2e-test-images/agnhost:2.55
netshoot nicolaka/netshoot:latest
iperf3 networkstatic/iperf3:latest
sockperf hpk-test/sockperf:latest
pause pause:3.10 pause:3.10.2
'

allow_missing=
case ${1:-} in
--allow-missing) allow_missing=1 ;;
"") ;;
*) die "usage: build.sh [--allow-missing]" ;;
esac
need jq jq zstd zstd dpkg-deb dpkg /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"
PAUSE=$CHECKOUT/bin/hpk-pause
if ! [ -x "$PAUSE" ]; then
    [ -n "$allow_missing" ] || die "bin/hpk-pause is missing: run make programs first, or give --allow-missing"
    echo "warning: bin/hpk-pause is missing: no pause image" >&2
    PAUSE=/dev/null
fi

# What doesn't depend on our programs.
build_slow() { # DIR
    local image _
    WORK=$1/.work
    mkdir "$WORK"
    step "read Debian's index" debs_begin "$WORK/debs"
    DEBS=$WORK/debs
    while read -r image _; do
        case $image in
        "" | pause) ;;
        *) step "image $image" "image_$image" "$1/$image" ;;
        esac
    done <<<"$IMAGES_AND_NAMES"
    chmod -R u+w "$WORK"
    rm -rf "$WORK"
}

# The whole set: those by hard links, and pause.
assemble() { # DIR
    local image names name
    cp -al "$slow"/. "$1" 2>/dev/null || cp -a "$slow"/. "$1"
    [ "$PAUSE" = /dev/null ] || pause_image "$1/pause"
    while read -r image names; do
        [ -e "$1/$image/index.json" ] || continue
        for name in $names; do
            printf '%s\t%s\n' "$image" "$name" >>"$1/images.list"
        done
    done <<<"$IMAGES_AND_NAMES"
}

slow=$HPK_CACHE/test-images/base-$({ cat "$HERE/recipes.sh" "$HERE/debs.sh" "$IMAGES/oci.sh" "$IMAGES/control-plane/go.sum"
    declare -f build_slow; cut -d' ' -f1 <<<"$IMAGES_AND_NAMES"; go version; } | key)
out=$HPK_CACHE/test-images/set-$({ echo "$slow $IMAGES_AND_NAMES"; declare -f assemble; cat "$PAUSE"; } | key)
ensure "$slow" "test images" build_slow
ensure "$out" "test images: assemble" assemble
ln -sfn "${out##*/}" "$HPK_CACHE/test-images/current.new"
mv -fT "$HPK_CACHE/test-images/current.new" "$HPK_CACHE/test-images/current"
keep_newest "$HPK_CACHE/test-images" 2 "base-*"
keep_newest "$HPK_CACHE/test-images" 3 "set-*"
