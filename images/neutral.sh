# shellcheck shell=sh
# Run by mmdebstrap on a finished Debian root, $1, before it is packed; as text, since the user namespace it may run in
# can't read the checkout. Nothing stays of the machine that built it: neither the archive and proxy that its apt was
# told of, nor its names, nor what only this build needed.
set -eu
root=$1
rm -rf "$root"/var/cache/* "$root"/var/log/* "$root"/var/lib/apt/lists/* "$root"/etc/apt/sources.list* \
    "$root"/etc/apt/apt.conf.d/99mmdebstrap
# Apptainer binds its own over these where it may.
: >"$root/etc/resolv.conf"
chmod 0644 "$root/etc/resolv.conf"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
