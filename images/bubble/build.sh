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
HERE=$IMAGES/bubble
read -ra SQUASHFS <<<"${HPK_SQUASHFS:-zstd -Xcompression-level 3}"
PROGRAMS=(hpk-bubble hpk-kubelet hpk-logger hpk-net-daemon hpk-pause hpktainer containerd-shim-hpk-v2
    hpk-control-plane cnitool)
PLUGINS=(cni-hpk)

allow_missing='' root_only=''
case ${1:-} in
--allow-missing) allow_missing=1 ;;
--root) root_only=1 ;;
"") ;;
*) die "usage: build.sh [--allow-missing | --root]" ;;
esac

need mmdebstrap mmdebstrap mksquashfs squashfs-tools \
    /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
[ "$(id -u)" = 0 ] || need newuidmap uidmap

packages() {
    sed 's/#.*//' "$HERE/packages.list" | tr -s '[:space:]' ',' | sed 's/^,//; s/,$//'
}

build_debian() { # DIR
    debian_root "$1/root.tar" "$1/log" "$(packages)" --variant=essential --skip=output/dev \
        --customize-hook="$(cat "$HERE/customize.sh")"
}

debian=$HPK_CACHE/rootfs/bubble-$({ cat "$HERE/packages.list" "$HERE/customize.sh"
    declare -f build_debian debian_root; uname -m; } | key)
ensure "$debian" "Debian root for the bubble" build_debian
keep_newest "$HPK_CACHE/rootfs" 2 "bubble-*"
[ -z "$root_only" ] || exit 0

present=()
for program in "${PROGRAMS[@]}" "${PLUGINS[@]}"; do
    if [ -x "$CHECKOUT/bin/$program" ]; then
        present+=("$program")
    elif [ -n "$allow_missing" ]; then
        echo "warning: bin/$program is missing: the image goes without it" >&2
    else
        die "bin/$program is missing: run make binaries control-plane first, or give --allow-missing"
    fi
done
[ -x "$CHECKOUT/bin/mksif" ] || "$IMAGES/control-plane/build.sh"

# What goes over the Debian root, in $1.
lay_overlay() {
    local over=$1 program meta=$1/.singularity.d
    mkdir -p "$over"/{dev,proc,sys} "$over/usr/local/bin" "$over/opt/cni/bin" "$meta/env" "$meta/libs"
    for program in "${present[@]}"; do
        case " ${PLUGINS[*]} " in
        *" $program "*) cp "$CHECKOUT/bin/$program" "$over/opt/cni/bin/" ;;
        *) cp "$CHECKOUT/bin/$program" "$over/usr/local/bin/" ;;
        esac
    done
    for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy flanneld coredns; do
        ln -s hpk-control-plane "$over/usr/local/bin/$program"
    done
    for program in kubectl etcd etcdctl; do
        ln -s "/usr/bin/$program" "$over/usr/local/bin/$program"
    done
    cp "$HERE/environment.sh" "$meta/env/90-environment.sh"
    cp "$HERE/startscript" "$HERE/runscript" "$meta/"
    chmod 0755 "$meta/startscript" "$meta/runscript" "$meta/env/90-environment.sh"
    echo '{"org.label-schema.schema-version":"1.0","io.hpk.image":"hpk-bubble"}' >"$meta/labels.json"
    ln -s .singularity.d/runscript "$over/singularity"
    ln -s .singularity.d/env/90-environment.sh "$over/environment"
}

squash() { # DIR
    local over=$1/over
    lay_overlay "$over"
    # Of two entries of one name the first counts, so ours come first, less their end mark.
    { tar -C "$over" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        --mode=go-w,+X -b1 -cf - . | head -c -1024
      cat "$debian/root.tar"; } |
        mksquashfs - "$1/root.sqfs" -tar -quiet -no-progress -comp "${SQUASHFS[@]}" 2>&1 >/dev/null |
        { grep -v -e 'already exists in the tar file' -e 'Empty tar filename' -e '^$' >&2 || true; }
    "$CHECKOUT/bin/mksif" "$1/root.sqfs" "$1/hpk-bubble.sif"
    rm -r "$over" "$1/root.sqfs"
}

image=$HPK_CACHE/images/bubble-$({ echo "$debian ${SQUASHFS[*]}"; cat "$HERE"/*.sh "$HERE/startscript" "$HERE/runscript"
    for program in "${present[@]}"; do echo "$program"; cat "$CHECKOUT/bin/$program"; done; } | key)
ensure "$image" "squash hpk-bubble.sif" squash
publish "$image/hpk-bubble.sif" "$CHECKOUT/bin/hpk-bubble.sif"
keep_newest "$HPK_CACHE/images" 3 "bubble-*"
