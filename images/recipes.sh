# Our images, a recipe each: layers_NAME ARCH DIR writes the layers 1-….tar, 2-….tar; inputs_NAME prints what they are
# made from, for the cache's key; contents_NAME ARCH sets what the list of contents is made from. Sourced by release.sh.
# shellcheck shell=bash disable=SC2034

# programs ARCH NAME…: their paths; each must be there.
programs() {
    local bin=$CHECKOUT/bin/linux-$1 name
    shift
    for name in "$@"; do
        [ -x "$bin/$name" ] || die "$bin/$name is missing: run make binaries first"
        echo "$bin/$name"
    done
}

# digests NAME…: of these programs, for all architectures.
digests() {
    local arch
    for arch in "${ARCHES[@]}"; do programs "$arch" "$@" | xargs -d '\n' sha256sum; done
}

layers_hpk_pause() {
    local root=$2/root
    mkdir "$root"
    install -m 0755 "$(programs "$1" hpk-pause)" "$root/pause"
    pack "$root" >"$2/1-program.tar"
    rm -r "$root"
}
inputs_hpk_pause() { digests hpk-pause; }
contents_hpk_pause() { ROOT='' RUST=(hpk-pause) GO=(); }

layers_hpk_bubble() {
    local over=$2/over
    programs "$1" "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}" >/dev/null
    bubble_root "$1"
    ln "$BUBBLE_ROOT" "$2/1-debian.tar" 2>/dev/null || cp "$BUBBLE_ROOT" "$2/1-debian.tar"
    lay_bubble "$CHECKOUT/bin/linux-$1" "$over" "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"
    pack_bubble "$over" >"$2/2-programs.tar"
    rm -r "$over"
}
inputs_hpk_bubble() {
    digests "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"
    cat "$BUBBLE"/{*.sh,packages.list,startscript,runscript}
}
contents_hpk_bubble() {
    bubble_root "$1"
    ROOT=$BUBBLE_ROOT RUST=() GO=(hpk-control-plane cnitool)
    local program
    for program in "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"; do
        case $program in hpk-control-plane | cnitool) ;; *) RUST+=("$program") ;; esac
    done
}
