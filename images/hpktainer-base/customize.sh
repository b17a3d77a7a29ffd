# shellcheck shell=sh
# Run by mmdebstrap on the finished Debian root, $1; as text (neutral.sh).
set -eu
root=$1
printf 'hpktainer\n' >"$root/etc/hostname"
# Where root is the only user (docs/single-id.md) apt can become no other; and a container is small on purpose.
printf 'APT::Sandbox::User "root";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/90hpk"
# In a container nobody gains anything by a program's bits or capabilities: ping has to do with what its caller has, and
# a capability that the container lacks would be a refusal to start it.
cp "$root/usr/bin/ping" "$root/usr/bin/ping.new"
chmod 0755 "$root/usr/bin/ping.new"
mv "$root/usr/bin/ping.new" "$root/usr/bin/ping"
