# shellcheck shell=sh
# Run by mmdebstrap on the finished Debian root, $1; as text (neutral.sh).
set -eu
root=$1
printf 'builder\n' >"$root/etc/hostname"
printf 'APT::Sandbox::User "root";\nAPT::Install-Recommends "false";\n' >"$root/etc/apt/apt.conf.d/90hpk"
# A checkout that is bound in may belong to another.
printf '[safe]\n\tdirectory = *\n' >"$root/etc/gitconfig"
# Debian leaves the versioned Go where no PATH leads.
for program in go gofmt; do ln -s "/usr/lib/go-1.26/bin/$program" "$root/usr/local/bin/$program"; done
