# What the bubble's image is made of, for any architecture. Sourced after lib.sh and roots.sh.
# shellcheck shell=bash disable=SC2034

BUBBLE=$IMAGES/bubble
BUBBLE_PROGRAMS=(hpk-bubble hpk-kubelet hpk-logger hpk-net-daemon hpk-pause hpktainer containerd-shim-hpk-v2
    hpk-control-plane cnitool)
BUBBLE_PLUGINS=(cni-hpk)

# bubble_root ARCH: builds the Debian root if it must, and sets BUBBLE_ROOT to its tar.
bubble_root() {
    root_of "$BUBBLE" "$1" --variant=essential
    BUBBLE_ROOT=$ROOT_TAR
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
