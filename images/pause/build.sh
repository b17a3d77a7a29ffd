#!/usr/bin/env bash
# Builds bin/hpk-pause.tar, the image hpk-pause as an OCI archive: the static program from bin/ and
# nothing else. `skopeo copy oci-archive:bin/hpk-pause.tar docker://REGISTRY/hpk-pause` publishes it.
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=images/oci.sh
. "$IMAGES/oci.sh"
[ -x "$CHECKOUT/bin/hpk-pause" ] || die "bin/hpk-pause is missing: run make programs first"
need jq jq

archive() { # DIR
    pause_image "$1/layout"
    pack "$1/layout" >"$1/hpk-pause.tar"
    rm -r "$1/layout"
}

image=$HPK_CACHE/images/pause-$(cat "$IMAGES/oci.sh" "$IMAGES/pause/build.sh" "$CHECKOUT/bin/hpk-pause" | key)
ensure "$image" "image hpk-pause" archive
keep_newest "$HPK_CACHE/images" 2 "pause-*"
publish "$image/hpk-pause.tar" "$CHECKOUT/bin/hpk-pause.tar"
