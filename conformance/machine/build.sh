#!/usr/bin/env bash
# Builds the machine's disk: a Debian of unstable with systemd, its own kernel and Slurm, as an ext4 image, without
# a loop device. Kept in the cache until its recipe changes. Prints its folder: disk.ext4, vmlinuz, initrd.img.
set -euo pipefail
# mke2fs is there, and an ordinary user's has neither.
PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../../images/lib.sh"

need mmdebstrap mmdebstrap mke2fs e2fsprogs /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring

# Owners and modes are the root file system's own: as root, or in a user namespace that has them all.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else unshare --map-root-user --map-auto -- "$@"; fi
}

build_machine() { # DIR
    local dir=$1
    debian_root "$dir/root.tar" "$dir/log" "$(packages_of "$HERE/packages.list")" --variant=important --skip=output/dev \
        --customize-hook="$(cat "$HERE/customize.sh")"
    # shellcheck disable=SC2016 # the inner shell's
    as_root bash -euo pipefail -c '
        mkdir "$1/root"
        tar -C "$1/root" --numeric-owner --xattrs --xattrs-include="*" -xpf "$1/root.tar"
        cp -L "$1/root/vmlinuz" "$1/vmlinuz"
        cp -L "$1/root/initrd.img" "$1/initrd.img"
        chmod 0644 "$1/vmlinuz" "$1/initrd.img"
        mkdir -p "$1/root"/{dev,proc,sys,run}
        mke2fs -q -t ext4 -E root_owner=0:0 -d "$1/root" "$1/disk.ext4" 12G
        rm -rf "$1/root"' sh "$dir"
    rm "$dir/root.tar"
}

machine=$HPK_CACHE/machine/$({ cat "$HERE/packages.list" "$HERE/customize.sh"; declare -f build_machine debian_root; } | key)
ensure "$machine" "Debian for a virtual machine" build_machine >&2
keep_newest "$HPK_CACHE/machine" 2
echo "$machine"
