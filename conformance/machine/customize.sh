# shellcheck shell=sh
# Run by mmdebstrap on the machine's Debian root, $1, before it is packed.
set -eu
root=$1
echo node1 >"$root/etc/hostname"
printf '127.0.0.1 localhost\n10.0.2.15 node1.hpk.test node1\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults 0 1\n/dev/vdb /hpk ext4 ro 0 2\n' >"$root/etc/fstab"
: >"$root/etc/machine-id"
mkdir -p "$root/hpk" "$root/etc/systemd/network" "$root/etc/systemd/system" "$root/etc/ssh/sshd_config.d"
# The network that qemu's user mode makes.
cat >"$root/etc/systemd/network/10-eth.network" <<'END'
[Match]
Type=ether
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
DNS=10.0.2.3
END
# A key for root is on the second disk, if somebody wants to look.
printf 'AuthorizedKeysFile /hpk/authorized_keys\nStrictModes no\n' >"$root/etc/ssh/sshd_config.d/hpk.conf"
cat >"$root/etc/systemd/system/hpk-machine.service" <<'END'
[Unit]
Description=What HPK is on this machine
Wants=network-online.target
After=network-online.target munge.service
[Service]
Type=exec
ExecStart=/hpk/conformance/machine/guest
[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl enable --quiet systemd-networkd hpk-machine.service
# It has a configuration of its own, and is started when that is there.
chroot "$root" systemctl disable --quiet docker-registry.service
# What a first boot would do by itself, slowly.
chroot "$root" journalctl --update-catalog
chroot "$root" ldconfig
touch "$root/etc/.updated" "$root/var/.updated"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
