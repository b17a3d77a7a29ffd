# shellcheck shell=sh
# Run by mmdebstrap on the finished Debian root, $1; as text (neutral.sh).
set -eu
root=$1
rm -rf "${root:?}"/boot "$root"/usr/lib/systemd "$root"/usr/lib/*-linux-gnu/systemd "$root"/etc/systemd \
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
printf 'bubble\n' >"$root/etc/hostname"
