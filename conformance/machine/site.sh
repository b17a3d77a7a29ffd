# The machine as a site: Slurm and users by Vagrant's provisioning, and a registry with test images.
# shellcheck shell=bash

# What HPK or its parts may want of the kernel. On a machine just booted they are not loaded.
readonly MODULES="br_netfilter vxlan overlay tun fuse nf_tables nft_chain_nat xt_comment ip_vs veth bridge"
readonly REGISTRY=10.0.2.15:5000

prepare_site() {
	note "$(uname -r), $(systemctl --version | head -n 1 | cut -d' ' -f1,2), slurm $(dpkg-query -W -f '${Version}' slurmd)"
	note "modules loaded at first: $(loaded_modules)"
	check "the machine is provisioned by vagrant/provision/machine" /hpk/vagrant/provision/machine alone
	check "the user has a session of systemd's, and a bus" has_a_session
	check "Slurm's node is idle" within 300 node_is_idle
	check "AppArmor is on, cgroup v2 has cpu, io, memory and pids" has_what_a_namespace_testbed_lacks
	check "a registry serves the test images" serve_images
	check "the tarball is unpacked in the user's home" as_hpc 'tar xzf /hpk/dist/hpk-*.tar.gz && test -x hpk/bin/hpk-bubble'
}

loaded_modules() {
	local module loaded=
	for module in $MODULES; do
		if [ -e "/sys/module/$module" ]; then loaded+=" $module"; fi
	done
	echo "${loaded:-none} of: $MODULES"
}

# sbatch passes its address on to jobs, where Apptainer would find it.
has_a_session() {
	loginctl enable-linger hpc && within 300 as_hpc 'busctl --user list --no-pager'
}

node_is_idle() {
	[ "$(sinfo -h -o %T)" = idle ] || { sinfo -N -l && return 1; }
}

has_what_a_namespace_testbed_lacks() {
	local controller
	equal "$(cat /sys/module/apparmor/parameters/enabled)" Y || return 1
	equal "$(stat -f -c %T /sys/fs/cgroup)" cgroup2fs || return 1
	for controller in cpu io memory pids; do
		contains " $(cat /sys/fs/cgroup/cgroup.controllers) " " $controller " || return 1
	done
}

serve_images() {
	local folder
	cat >/etc/docker/registry/config.yml <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: "$REGISTRY"}
YAML
	systemctl restart docker-registry
	within 120 curl -sf "http://$REGISTRY/v2/" || return 1
	for folder in busybox:library/busybox:1.37 nginx:library/nginx:1.27; do
		skopeo copy --quiet --insecure-policy --dest-tls-verify=false --preserve-digests \
			"oci:/hpk/images/${folder%%:*}" "docker://$REGISTRY/${folder#*:}" || return 1
	done
	install -d -o hpc -g hpc -m 0700 /home/hpc/.hpk
	printf 'mirrors:\n  docker.io:\n    endpoint:\n      - http://%s\n' "$REGISTRY" |
		install -o hpc -g hpc -m 0600 /dev/stdin /home/hpc/.hpk/registries.yaml
}
