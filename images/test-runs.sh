# What an image of ours is for, tried in a chroot of its files, by qemu where it is another architecture's. Sourced by
# test-release.sh, which may be in a user namespace already.
# shellcheck shell=bash

# How long anything may take: under qemu, a program can wait for ever.
LONGEST=50m

# enter ARCH TREE COMMAND…: runs it in TREE as root of namespaces of its own, with /proc, /dev and a loopback, and of the
# machine what HERE names as FROM:TO.
enter() {
    local arch=$1 tree=$2 around=(unshare --mount --net --pid --fork --kill-child)
    shift 2
    [ "$arch" = "$GO_ARCH" ] || around=("$IMAGES/emulate" "$arch" unshare --mount --net)
    # shellcheck disable=SC2016  # for the inner shell
    timeout --kill-after=10 "$LONGEST" "${around[@]}" bash -euc 'tree=$1; read -ra here <<<"$2"; shift 2
        ip link set lo up
        mkdir -p "$tree/dev" "$tree/proc"
        mount -t proc proc "$tree/proc"
        mount --rbind /dev "$tree/dev"
        for pair in "${here[@]}"; do
            mkdir -p "$tree${pair#*:}"
            mount --bind "${pair%%:*}" "$tree${pair#*:}"
        done
        exec chroot "$tree" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            HOME=/root LANG=C.UTF-8 GOTOOLCHAIN=local GOPROXY=off "$@"' bash "$tree" "${HERE:-}" "$@"
}

runs_hpktainer_base() { # ARCH TREE
    enter "$1" "$2" bash -euc 'ping -c 1 -W 5 127.0.0.1; curl --version; ip -V; nc -h 2>&1; apt-get --version; ps --version
        dpkg --print-architecture' >"$work/ran" 2>&1 || die "hpktainer-base for $1 does not run: $(tail -n 5 "$work/ran")"
    grep -q '1 received' "$work/ran" || die "hpktainer-base for $1: no answer to ping: $(cat "$work/ran")"
    grep -qx "$1" "$work/ran" || die "hpktainer-base for $1 has another architecture's packages: $(cat "$work/ran")"
    echo "hpktainer-base for $1: ping, curl, ip, nc, apt-get and ps run"
}

# hpk-pause by its Rust and cnitool by its Go, for both architectures, of this checkout; those of its own must run. (Not
# the bytes of bin/linux-*: the linker is another than this machine's, and so is Go.)
#
# One crate at a time under qemu: a fork of a program of several threads can leave the child waiting for ever there
# (seen with qemu 7.2), and cargo, which starts a compiler for each processor, is such a program.
runs_hpk_builder() { # ARCH TREE
    local arch=$1 tree=$2 stash cargo=${CARGO_HOME:-$HOME/.cargo} go line jobs
    [ "$arch" = "$GO_ARCH" ] && jobs=$(nproc) || jobs=1
    go=$(go env GOMODCACHE)
    (cd "$IMAGES/tools" && go mod download)
    stash=$(git -C "$CHECKOUT" stash create)
    mkdir "$tree/hpk"
    git -C "$CHECKOUT" archive "${stash:-HEAD}" | tar -C "$tree/hpk" -xf -
    HERE="$cargo/registry:/root/.cargo/registry $go:/root/go/pkg/mod" enter "$arch" "$tree" bash -euc 'cd /hpk
        scripts/deps build amd64 arm64
        export CARGO_NET_OFFLINE=true CARGO_BUILD_JOBS=$2
        for arch in amd64 arm64; do
            scripts/binaries --rust $arch hpk-pause
            (cd images/tools && CGO_ENABLED=0 GOARCH=$arch go build -trimpath -buildvcs=false \
                -o /hpk/bin/linux-$arch/cnitool github.com/containernetworking/cni/cnitool)
        done
        readelf -h bin/linux-amd64/hpk-pause bin/linux-amd64/cnitool | grep -c "Machine:.*X86-64" | sed "s/^/amd64: /"
        readelf -h bin/linux-arm64/hpk-pause bin/linux-arm64/cnitool | grep -c "Machine:.*AArch64" | sed "s/^/arm64: /"
        bin/linux-$1/hpk-pause --version' bash "$arch" "$jobs" >"$work/ran" 2>&1 || die "hpk-builder for $arch does not build: $(tail -n 15 "$work/ran")"
    for line in 'amd64: 2' 'arm64: 2' 'hpk-pause [0-9.]*'; do
        grep -qx "$line" "$work/ran" || die "hpk-builder for $arch: no line \"$line\" in: $(tail -n 15 "$work/ran")"
    done
    echo "hpk-builder for $arch: builds hpk-pause and cnitool for amd64 and arm64, and its own run"
}
