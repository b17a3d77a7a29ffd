# Debian roots of our images: what a recipe's folder lists, built by mmdebstrap, kept by the hash of its recipe. Sourced
# after lib.sh.
# shellcheck shell=bash disable=SC2034

# root_packages FOLDER ARCH: the packages, joined by commas: of packages.list, and packages-ARCH.list where there is one.
root_packages() {
    local lists=("$1/packages.list")
    [ ! -e "$1/packages-$2.list" ] || lists+=("$1/packages-$2.list")
    packages_of "${lists[@]}"
}

build_root() { # DIR FOLDER ARCH [MMDEBSTRAP OPTIONS…]
    local dir=$1 folder=$2 arch=$3
    shift 3
    debian_root_of "$arch" "$dir/root.tar" "$dir/log" "$(root_packages "$folder" "$arch")" --skip=output/dev \
        --customize-hook="$(cat "$IMAGES/neutral.sh")" --customize-hook="$(cat "$folder/customize.sh")" "$@"
    # Device nodes an ordinary user could not unpack; the folder for them is wanted.
    mkdir -p "$dir/dev/dev"
    tar -C "$dir/dev" --format=gnu --owner=0 --group=0 --numeric-owner --mode=0755 --mtime="@$SOURCE_DATE_EPOCH" \
        -rf "$dir/root.tar" ./dev
    rm -r "$dir/dev"
}

# root_of FOLDER ARCH [MMDEBSTRAP OPTIONS…]: builds the Debian root of a recipe's folder if it must; sets ROOT_TAR.
root_of() {
    local folder=$1 arch=$2 name=${1##*/} dir
    shift 2
    need mmdebstrap mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
    [ "$arch" = "$GO_ARCH" ] || need "$(emulator "$arch")" qemu-user-static
    dir=$HPK_CACHE/rootfs/debian-$name-$arch-$({ echo "$*"; cat "$folder"/packages*.list "$folder/customize.sh" "$IMAGES/neutral.sh"
        declare -f build_root debian_root; } | key)
    ensure "$dir" "Debian root of $name ($arch)" build_root "$folder" "$arch" "$@"
    keep_newest "$HPK_CACHE/rootfs" 2 "debian-$name-$arch-*"
    ROOT_TAR=$dir/root.tar
}
