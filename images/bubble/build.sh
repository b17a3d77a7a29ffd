#!/usr/bin/env bash
# Builds bin/hpk-bubble.sif, the bubble's root file system, without root and without a container
# engine: a Debian root by mmdebstrap, cached until its recipe changes; over it our programs from
# bin/; both streamed into one squashfs; that wrapped as a Singularity image. When only our programs
# changed it takes a few seconds.
#
#   build.sh [--allow-missing]   --allow-missing: leave out programs that bin/ lacks, with a warning
#   build.sh --root              only the Debian root, for which no program is needed
#   HPK_SQUASHFS="zstd -Xcompression-level 9"   another compression
#   HPK_DEBIAN_MIRROR=URL                       instead of apt's own
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source=images/roots.sh
. "$IMAGES/roots.sh"
# shellcheck source=images/bubble/parts.sh
. "$IMAGES/bubble/parts.sh"
read -ra SQUASHFS <<<"${HPK_SQUASHFS:-zstd -Xcompression-level 3}"

allow_missing='' root_only=''
case ${1:-} in
--allow-missing) allow_missing=1 ;;
--root) root_only=1 ;;
"") ;;
*) die "usage: build.sh [--allow-missing | --root]" ;;
esac

need mksquashfs squashfs-tools
bubble_root "$GO_ARCH"
[ -z "$root_only" ] || exit 0

present=()
for program in "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"; do
    if [ -x "$CHECKOUT/bin/$program" ]; then
        present+=("$program")
    elif [ -n "$allow_missing" ]; then
        echo "warning: bin/$program is missing: the image goes without it" >&2
    else
        die "bin/$program is missing: run make programs control-plane first, or give --allow-missing"
    fi
done
[ -x "$CHECKOUT/bin/mksif" ] || "$IMAGES/control-plane/build.sh"

squash() { # DIR
    local over=$1/over
    lay_bubble "$CHECKOUT/bin" "$over" "${present[@]}"
    # Of two entries of one name the first counts, so ours come first, less their end mark.
    { pack_bubble "$over" | head -c -1024
      cat "$BUBBLE_ROOT"; } |
        mksquashfs - "$1/root.sqfs" -tar -quiet -no-progress -comp "${SQUASHFS[@]}" 2>&1 >/dev/null |
        { grep -v -e 'already exists in the tar file' -e 'Empty tar filename' -e '^$' >&2 || true; }
    "$CHECKOUT/bin/mksif" "$1/root.sqfs" "$1/hpk-bubble.sif"
    rm -r "$over" "$1/root.sqfs"
}

image=$HPK_CACHE/images/bubble-$({ echo "$BUBBLE_ROOT ${SQUASHFS[*]}"; cat "$BUBBLE"/*.sh "$BUBBLE/startscript" "$BUBBLE/runscript"
    for program in "${present[@]}"; do echo "$program"; cat "$CHECKOUT/bin/$program"; done; } | key)
ensure "$image" "squash hpk-bubble.sif" squash
publish "$image/hpk-bubble.sif" "$CHECKOUT/bin/hpk-bubble.sif"
keep_newest "$HPK_CACHE/images" 3 "bubble-*"
