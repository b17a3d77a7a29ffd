# Addresses and names of the hosts; partitions. The bridge and all its ports are in the switch's own
# network namespace, so this machine's root namespace gets no link.
# shellcheck shell=bash

readonly SITE_NET=10.99.0 OUTSIDE_NET=10.98.0
readonly MAX_NODES=64
# Names under which people pull; the registry answers to all of them.
readonly REGISTRY_ALIASES=(registry-1.docker.io docker.io index.docker.io registry.k8s.io ghcr.io quay.io)

# The host's IPv4 address on its link.
host_address() {
	case $1 in
	switch) echo "$SITE_NET.254" ;;
	ctl) echo "$SITE_NET.2" ;;
	registry) echo "$SITE_NET.3" ;;
	outside) echo "$OUTSIDE_NET.2" ;;
	login) echo "$SITE_NET.10" ;;
	node*) echo "$SITE_NET.$((10 + ${1#node}))" ;;
	*) die "no such host: $1" ;;
	esac
}

# A hosts file with every name the site's DNS knows.
dns_hosts() {
	local host n
	for host in switch ctl registry outside login; do
		echo "$(host_address "$host") $host.hpk.test $host"
	done
	for ((n = 1; n <= MAX_NODES; n++)); do
		echo "$(host_address "node$n") node$n.hpk.test node$n"
	done
	echo "$(host_address registry) ${REGISTRY_ALIASES[*]}"
}

in_switch() {
	local pid
	pid=$(host_pid switch) || die "the testbed is not up"
	nsenter -t "$pid" -n -- "$@"
}

# A disabled bridge port drops every frame both ways while the host still sees its carrier.
network_cut() {
	in_switch bridge link set dev "port-$1" state 0
}

network_heal() {
	in_switch bridge link set dev "port-$1" state 3
}

network_is_cut() {
	in_switch bridge -d -j link show dev "port-$1" 2>/dev/null | grep -q '"state":"disabled"'
}
