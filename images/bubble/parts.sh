# What the bubble's image is made of, for any architecture. Sourced after lib.sh.
# shellcheck shell=bash disable=SC2034

BUBBLE=$IMAGES/bubble
BUBBLE_PROGRAMS=(hpk-bubble hpk-kubelet hpk-logger hpk-net-daemon hpk-pause hpktainer containerd-shim-hpk-v2
    hpk-control-plane cnitool)
BUBBLE_PLUGINS=(cni-hpk)

build_bubble_root() { # DIR ARCH
    debian_root_of "$2" "$1/root.tar" "$1/log" "$(packages_of "$BUBBLE/packages.list")" --variant=essential --skip=output/dev \
        --customize-hook="$(cat "$BUBBLE/customize.sh")"
}

# bubble_root ARCH: builds the Debian root if it must, and sets BUBBLE_ROOT to its tar.
bubble_root() {
    local dir
    need mmdebstrap mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
    dir=$HPK_CACHE/rootfs/debian-bubble-$1-$({ cat "$BUBBLE/packages.list" "$BUBBLE/customize.sh"
        declare -f build_bubble_root debian_root; } | key)
    ensure "$dir" "Debian root for the bubble ($1)" build_bubble_root "$1"
    keep_newest "$HPK_CACHE/rootfs" 2 "debian-bubble-$1-*"
    BUBBLE_ROOT=$dir/root.tar
}

# lay_bubble BIN OVER PROGRAM…: what goes over the Debian root, with those programs of BIN, in OVER.
lay_bubble() {
    local bin=$1 over=$2 program meta=$2/.singularity.d
    shift 2
    mkdir -p "$over"/{dev,proc,sys} "$over/usr/local/bin" "$over/opt/cni/bin" "$meta/env" "$meta/libs"
    for program in "$@"; do
        case " ${BUBBLE_PLUGINS[*]} " in
        *" $program "*) cp "$bin/$program" "$over/opt/cni/bin/" ;;
        *) cp "$bin/$program" "$over/usr/local/bin/" ;;
        esac
    done
    for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy flanneld coredns; do
        ln -s hpk-control-plane "$over/usr/local/bin/$program"
    done
    for program in kubectl etcd etcdctl; do
        ln -s "/usr/bin/$program" "$over/usr/local/bin/$program"
    done
    cp "$BUBBLE/environment.sh" "$meta/env/90-environment.sh"
    cp "$BUBBLE/startscript" "$BUBBLE/runscript" "$meta/"
    chmod 0755 "$meta/startscript" "$meta/runscript" "$meta/env/90-environment.sh"
    echo '{"org.label-schema.schema-version":"1.0","io.hpk.image":"hpk-bubble"}' >"$meta/labels.json"
    ln -s .singularity.d/runscript "$over/singularity"
    ln -s .singularity.d/env/90-environment.sh "$over/environment"
}

# pack_bubble OVER: that as a tar stream.
pack_bubble() {
    tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        --mode=go-w,+X -b1 -cf - .
}
