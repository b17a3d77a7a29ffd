# The site's users; for a testbed host and for an evaluation VM alike. Run as root on the host.
# shellcheck shell=bash

# Two ordinary users, and one that the administrator gave no subordinate ids. Homes are shared, and
# whoever shares them makes them. Idempotent.
provision_users() {
	local entry name uid
	for entry in hpc:1000 eve:1001 nosub:1002; do
		name=${entry%%:*} uid=${entry##*:}
		if ! getent passwd "$name" >/dev/null; then
			useradd --no-create-home --uid "$uid" --user-group --shell /bin/bash "$name"
		fi
	done
	printf 'hpc:100000:65536\neve:165536:65536\n' | tee /etc/subuid >/etc/subgid
}
