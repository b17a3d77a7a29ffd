# What the image recipes share; sourced by each build.sh. Everything is built in a temporary
# directory of the cache and renamed into place when whole, under a key that is the hash of what
# went into it; so a build may be stopped at any point and run again.
# shellcheck shell=bash disable=SC2034,SC2016,SC2317

IMAGES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(dirname "$IMAGES")
HPK_CACHE=${HPK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hpk}
# Every file in an image gets this time, so that the same input gives the same digest.
export SOURCE_DATE_EPOCH=1735689600
export GOTOOLCHAIN=local CGO_ENABLED=0

case $(uname -m) in
x86_64) GO_ARCH=amd64 ;;
aarch64) GO_ARCH=arm64 ;;
*) GO_ARCH=$(uname -m) ;;
esac

die() {
    echo "${0##*/images/}: $*" >&2
    exit 1
}

# step WHAT CMD…: one progress line and the seconds it took, as scripts/step, but for functions too.
# Not to be called where bash ignores `set -e` (left of ||, in an if): a failure would go on.
step() {
    local what=$1 start=$EPOCHREALTIME status
    shift
    printf '%s …\n' "$what" >&2
    set +e
    (set -e; "$@")
    status=$?
    set -e
    awk -v w="$what" -v s="$start" -v e="$EPOCHREALTIME" -v st="$status" \
        'BEGIN { printf "%s: %s in %.1f s\n", w, st == 0 ? "done" : "FAILED (exit " st ")", e - s }' >&2
    return "$status"
}

# key <STDIN: 16 hex digits that stand for what is read.
key() {
    sha256sum | cut -c1-16
}

# need PROGRAM PACKAGE…: pairs of a program and the Debian package that has it. Installs what is
# missing as root, else says what is.
need() {
    local missing=()
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -e "$1" ] || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "these Debian packages are missing, and installing them needs root: ${missing[*]}"
    apt_install() {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    }
    step "install ${missing[*]}" apt_install "${missing[@]}"
}

# ensure DIR WHAT FUNCTION ARGS…: unless DIR exists, calls FUNCTION TEMPORARY-DIR ARGS… as a step and
# renames the temporary directory to DIR. One builder at a time; what a builder that died has left
# doesn't count. DIR's time is that of its last use.
ensure() {
    local dir=$1 lock
    if [ -e "$dir" ]; then
        touch "$dir"
        return
    fi
    mkdir -p "${dir%/*}"
    exec {lock}>"$dir.lock"
    flock "$lock"
    [ -e "$dir" ] || step "$2" build_aside "$dir" "${@:3}"
    exec {lock}>&-
}

build_aside() {
    local partial=$1.partial
    rm -rf "$partial"
    mkdir "$partial"
    # shellcheck disable=SC2064  # the name as it is now
    trap "rm -rf '$partial'" EXIT
    "$2" "$partial" "${@:3}"
    touch "$partial"
    mv -T "$partial" "$1"
}

# publish FILE TARGET: makes TARGET the same file by a hard link, or by a copy on another file
# system; by rename, so that a running program or a mounted image is never written into.
publish() {
    [ "$1" -ef "$2" ] && return 0
    mkdir -p "${2%/*}"
    ln -f "$1" "$2.new" 2>/dev/null || cp "$1" "$2.new"
    mv -f "$2.new" "$2"
}

# keep_newest DIR N [PATTERN]: removes all but the N last used builds below DIR, of those so named.
keep_newest() {
    local old
    find "$1" -mindepth 1 -maxdepth 1 -type d -name "${3:-*}" ! -name "*.partial" -printf '%T@ %p\n' |
        sort -rn | tail -n +"$(($2 + 1))" | cut -d' ' -f2- |
        while read -r old; do rm -rf "$old"; done
}

# module_version GO.MOD MODULE: the version that file requires.
module_version() {
    awk -v m="$2" '$1 == m && $2 ~ /^v/ { print $2; exit }' "$1"
}

# module_field GO.MOD MODULE FIELD: what Go says of a module (Dir, Info), downloading it if it must.
module_field() {
    (cd "${1%/*}" && go mod download -json "$2@$(module_version "$1" "$2")") | sed -n "s/^\t\"$3\": \"\(.*\)\",\$/\1/p"
}

# The Debian archive that this machine's apt is set up with, or HPK_DEBIAN_MIRROR.
debian_mirror() {
    local uri=${HPK_DEBIAN_MIRROR:-}
    [ -n "$uri" ] || uri=$(apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
        grep -v security | sort -r | sed -n 's/^\(Debian\)\{0,1\}|//p' | head -n 1) || true
    case $uri in
    mirror+file:*) uri=$(grep -Eo '^https?://[^[:space:]]+' "${uri#mirror+file:}" | head -n 1) ;;
    esac
    [ -n "$uri" ] || die "apt on this machine has no Debian archive set up; name one in HPK_DEBIAN_MIRROR"
    echo "$uri"
}

# debian_root TAR LOG PACKAGES(,) [MMDEBSTRAP OPTIONS…]: a root file system of unstable, without
# documentation and foreign languages. As root directly, else in a user namespace.
debian_root() {
    local tar=$1 log=$2 packages=$3 proxy
    shift 3
    proxy=$(apt-config shell p Acquire::http::Proxy | sed "s/^p='\(.*\)'$/\1/")
    [ -z "$proxy" ] || set -- --aptopt="Acquire::http::Proxy \"$proxy\"" "$@"
    mmdebstrap --format=tar --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
        --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
        --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='path-exclude=/usr/share/vim/*/doc/*' \
        "$@" sid "$tar" "$(debian_mirror)" >"$log" 2>&1 ||
        die "mmdebstrap failed; the end of its log:"$'\n'"$(tail -n 15 "$log")"
}

# debian_root_of ARCH TAR LOG PACKAGES(,) [MMDEBSTRAP OPTIONS…]: the same for an architecture; for another than this
# machine's, its programs run by qemu.
debian_root_of() {
    local arch=$1
    shift
    if [ "$arch" = "$GO_ARCH" ]; then
        debian_root "$@"
    else
        "$IMAGES/emulate" "$arch" bash -euo pipefail -c '. "$0"; debian_root "$@"' "$IMAGES/lib.sh" "$@" \
            --arch="$arch" --mode=root --skip=check/qemu
    fi
}

# emulator ARCH: the program that runs those of another architecture.
emulator() {
    case $1 in
    arm64) echo qemu-aarch64-static ;;
    amd64) echo qemu-x86_64-static ;;
    *) die "$1 is no architecture that HPK is built for: amd64 or arm64" ;;
    esac
}

# packages_of LIST…: the packages that lists name, joined by commas.
packages_of() {
    sed 's/#.*//' "$@" | tr -s '[:space:]' ',' | sed 's/^,//; s/,$//'
}
