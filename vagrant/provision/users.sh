# The site's users; for a testbed host and for an evaluation VM alike. Run as root on the host.
# shellcheck shell=bash

# Two ordinary users, and one that the administrator gave no subordinate ids. Homes are shared, and
# whoever shares them makes them. Their ids are the same on all hosts: FIRST and those after it, 1000 unless given.
# Idempotent.
readonly USERS="hpc eve nosub"
provision_users() { # [FIRST]
	local name uid=${1:-1000}
	for name in $USERS; do
		if ! getent passwd "$name" >/dev/null; then
			useradd --no-create-home --uid "$uid" --user-group --shell /bin/bash "$name"
		fi
		uid=$((uid + 1))
	done
	printf 'hpc:100000:65536\neve:165536:65536\n' | tee /etc/subuid >/etc/subgid
}
