# shellcheck shell=sh
# Run by mmdebstrap on the finished Debian root, $1, before it is packed; as text, since the user
# namespace it may run in can't read the checkout.
set -eu
root=$1
rm -rf "$root"/var/cache/* "$root"/var/log/* "$root"/etc/apt/sources.list* "${root:?}"/boot \
    "$root"/usr/lib/systemd "$root"/usr/lib/*-linux-gnu/systemd "$root"/etc/systemd \
    "$root"/usr/bin/etcdutl "$root"/usr/lib/*/gconv "$root"/usr/share/vim/vim*/doc
# Where CNI's callers look for plugins by default; dhcp wants a daemon and is the largest.
mkdir -p "$root/opt/cni/bin"
mv "$root"/usr/lib/cni/* "$root/opt/cni/bin/"
rm -f "$root/opt/cni/bin/dhcp"
rmdir "$root/usr/lib/cni"
ln -s /opt/cni/bin "$root/usr/lib/cni"
# A read-only root needs each place that something is mounted on.
for place in etc/cni/net.d etc/hpk home opt/cni/bin root run/flannel run/hpk run/netns run/lock \
    tmp var/cache var/log/pods var/log/containers var/lib/cni var/lib/hpk var/lib/kubelet var/tmp; do
    mkdir -p "$root/$place"
done
chmod 1777 "$root/tmp" "$root/var/tmp" "$root/run/lock"
# Apptainer binds its own over these where it may; the builder's own must not stay.
: >"$root/etc/resolv.conf"
chmod 0644 "$root/etc/resolv.conf"
printf 'bubble\n' >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
ln -sf /usr/share/zoneinfo/UTC "$root/etc/localtime"
