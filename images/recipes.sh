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

# link_layer FILE LAYER: FILE as a layer, by a hard link, or by a copy on another file system.
link_layer() { ln "$1" "$2" 2>/dev/null || cp "$1" "$2"; }

# recipe_files FOLDER: what an image of Debian's packages is made from.
recipe_files() { cat "$IMAGES/$1"/{packages*.list,customize.sh} "$IMAGES"/{neutral,roots}.sh; }

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
    link_layer "$BUBBLE_ROOT" "$2/1-debian.tar"
    lay_bubble "$CHECKOUT/bin/linux-$1" "$over" "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"
    pack_bubble "$over" >"$2/2-programs.tar"
    rm -r "$over"
}
inputs_hpk_bubble() {
    digests "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"
    recipe_files bubble
    cat "$BUBBLE"/{environment.sh,parts.sh,startscript,runscript}
}
contents_hpk_bubble() {
    bubble_root "$1"
    ROOT=$BUBBLE_ROOT RUST=() GO=(hpk-control-plane cnitool)
    local program
    for program in "${BUBBLE_PROGRAMS[@]}" "${BUBBLE_PLUGINS[@]}"; do
        case $program in hpk-control-plane | cnitool) ;; *) RUST+=("$program") ;; esac
    done
}

layers_hpktainer_base() {
    root_of "$IMAGES/hpktainer-base" "$1" --variant=apt
    link_layer "$ROOT_TAR" "$2/1-debian.tar"
}
inputs_hpktainer_base() { recipe_files hpktainer-base; }
contents_hpktainer_base() {
    root_of "$IMAGES/hpktainer-base" "$1" --variant=apt
    ROOT=$ROOT_TAR RUST=() GO=()
}

# The compiler that Cargo.toml asks for, as its makers release it, with the standard library of both architectures' musl.
RUST_VERSION=$(sed -n 's/^rust-version = "\([0-9]*\.[0-9]*\)"$/\1.0/p' "$CHECKOUT/Cargo.toml")

build_rust() { # DIR ARCH
    local host
    case $2 in
    amd64) host=x86_64-unknown-linux-gnu ;;
    arm64) host=aarch64-unknown-linux-gnu ;;
    esac
    RUSTUP_HOME=$1/rustup rustup --quiet toolchain install --no-self-update --profile minimal --force-non-host \
        -t x86_64-unknown-linux-musl -t aarch64-unknown-linux-musl "$RUST_VERSION-$host" >"$1/log" 2>&1 ||
        die "rustup gives no Rust $RUST_VERSION for $host: $(tail -n 5 "$1/log")"
    mkdir -p "$1/root/usr"
    mv "$1/rustup/toolchains/$RUST_VERSION-$host" "$1/root/usr/local"
    # What was installed is told there with the folder's path; nobody updates it in an image.
    rm -rf "$1/rustup" "$1"/root/usr/local/{etc,share} "$1"/root/usr/local/lib/rustlib/{manifest-*,multirust-*,uninstall.sh,install.log}
    pack "$1/root" >"$1/rust.tar"
    rm -r "$1/root"
}

layers_hpk_builder() {
    local dir
    command -v rustup >/dev/null || die "rustup is missing, which fetches the compiler for hpk-builder"
    dir=$HPK_CACHE/rust/$RUST_VERSION-$1-$(declare -f build_rust pack | key)
    ensure "$dir" "Rust $RUST_VERSION for hpk-builder ($1)" build_rust "$1"
    keep_newest "$HPK_CACHE/rust" 2 "*-$1-*"
    root_of "$IMAGES/builder" "$1" --variant=apt
    link_layer "$ROOT_TAR" "$2/1-debian.tar"
    link_layer "$dir/rust.tar" "$2/2-rust.tar"
}
inputs_hpk_builder() {
    echo "$RUST_VERSION"
    declare -f build_rust
    recipe_files builder
}
contents_hpk_builder() {
    root_of "$IMAGES/builder" "$1" --variant=apt
    ROOT=$ROOT_TAR RUST=() GO=()
    OTHER=("pkg:generic/rust@$RUST_VERSION"$'\t'"rust"$'\t'"$RUST_VERSION"$'\t'"MIT OR Apache-2.0")
}
