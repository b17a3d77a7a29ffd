# Debian packages of unstable as files, without installing: an apt of its own in a directory, that
# believes nothing to be installed. Works as an ordinary user. Sourced after lib.sh.
# shellcheck shell=bash

# debs_begin DIR: reads the archive's index.
debs_begin() {
    DEBS=$1
    mkdir -p "$DEBS"/{state/lists/partial,cache/archives/partial,none/partial,etc}
    : >"$DEBS/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) sid main" >"$DEBS/etc/sources.list"
    debs_apt apt-get update -qq
}

# debs_apt PROGRAM ARGS…: apt on that directory.
debs_apt() {
    "$1" -o Dir::State="$DEBS/state" -o Dir::State::status="$DEBS/status" -o Dir::Cache="$DEBS/cache" \
        -o Dir::Etc::sourcelist="$DEBS/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Debug::NoLocking=1 "${@:2}"
}

# debs_unpack ROOT PACKAGE…: unpacks the packages and all they depend on, less what a container
# doesn't need, into ROOT, where the top folders are links into /usr.
debs_unpack() {
    local root=$1 list deb
    shift
    # With a cache of its own: apt doesn't name what it has downloaded before.
    list=$(debs_apt apt-get -o Dir::Cache::archives="$DEBS/none" install -y -qq --print-uris "$@" | sed -n "s/^'[^']*' \([^ ]*\) .*/\1/p")
    [ -n "$list" ] || die "apt names no package for: $*"
    debs_apt apt-get install -y -qq --download-only "$@" >/dev/null
    usr_merged "$root"
    for deb in $list; do
        dpkg-deb --fsys-tarfile "$DEBS/cache/archives/$deb" |
            tar -C "$root" --keep-directory-symlink --no-same-owner -xf - \
                --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' \
                --exclude='./usr/share/info' --exclude='./usr/share/bug' --exclude='./usr/share/lintian' \
                --exclude='./usr/lib/*/gconv' --exclude='./usr/lib/*/perl*' --exclude='./usr/share/perl*' \
                --exclude='./lib/systemd' --exclude='./usr/lib/systemd' --exclude='./etc/init.d' \
                --exclude='./var/lib/dpkg' --exclude='./usr/share/zoneinfo'
    done
}

usr_merged() {
    local top
    for top in bin sbin lib lib64; do
        mkdir -p "$1/usr/$top"
        [ -L "$1/$top" ] || ln -s "usr/$top" "$1/$top"
    done
}
