# The hosts' root file system: Debian sid by mmdebstrap, cached by content.
# shellcheck shell=bash

readonly ROOTFS_SUITE=sid

# The directory of the root file system that this checkout asks for.
rootfs_dir() {
	local key
	key=$(cat "$TESTBED_LIB/packages.list" "$TESTBED_LIB/rootfs.sh" | sha256sum | cut -c1-16)
	echo "$HPK_CACHE/rootfs/$key"
}

# Base URI of the Debian archive this machine's own apt is configured with.
apt_mirror() {
	local uri
	uri=$(apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)' 'Created-By: Packages' 'Component: main' |
		grep -v security | sort -r | sed -n 's/^\(Debian\)\{0,1\}|//p' | head -n 1) || true
	case $uri in
	mirror+file:*) uri=$(grep -Eo '^https?://[^[:space:]]+' "${uri#mirror+file:}" | head -n 1) ;;
	esac
	[[ -n $uri ]] || die "apt on this machine has no Debian archive configured (apt-get indextargets names none)"
	echo "$uri"
}

rootfs_packages() {
	sed 's/#.*//' "$TESTBED_LIB/packages.list" | tr -s '[:space:]' ',' | sed 's/^,//; s/,$//'
}

# Builds the root file system unless it is cached; prints nothing on stdout.
ensure_rootfs() {
	local dir partial lock
	dir=$(rootfs_dir)
	if [[ -e $dir ]]; then
		return 0
	fi
	mkdir -p "${dir%/*}"
	exec {lock}>"$dir.lock"
	flock "$lock"
	if [[ ! -e $dir ]]; then
		partial=$dir.partial
		rm -rf --one-file-system "$partial"
		mkdir -p "$partial"
		bootstrap_rootfs "$partial" >"$dir.log" 2>&1 ||
			die "mmdebstrap failed; the end of its log ($dir.log):"$'\n'"$(tail -n 15 "$dir.log")"
		mv "$partial" "$dir"
	fi
	exec {lock}>&-
}

bootstrap_rootfs() {
	local root=$1 mirror proxy options=()
	mirror=$(apt_mirror)
	proxy=$(apt-config shell p Acquire::http::Proxy | sed "s/^p='\(.*\)'$/\1/")
	if [[ -n $proxy ]]; then
		options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
	fi
	mmdebstrap --mode=root --variant=apt --format=directory \
		--aptopt='Acquire::Check-Valid-Until "false"' "${options[@]}" \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--include="$(rootfs_packages)" \
		"$ROOTFS_SUITE" "$root" "$mirror"
}
