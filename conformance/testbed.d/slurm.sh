# The site's Slurm: key, configuration, waiting for idle nodes.
# shellcheck shell=bash

# shellcheck source=../../vagrant/provision/slurm.sh
source "$CHECKOUT/vagrant/provision/slurm.sh"

# What every node advertises, whatever this machine has: two jobs of 2-4 CPUs fit on a node.
readonly NODE_CPUS=8 NODE_MEMORY_MIB=16384

# The node on which Slurm manages GPUs, and their number. There are none: to Slurm they are device nodes that
# `services` makes (gpu_nodes); what a case wants of a driver it makes up itself.
readonly GPU_NODE=node2 GPUS=4

# with_gpus NODES: slurm.conf, whose nodes are on one line, with GPUs on that node.
with_gpus() {
	local others
	others=$(seq -s, -f 'node%g' "$1" | sed -E "s/\b$GPU_NODE,?//; s/,$//")
	sed -E "s/^NodeName=node\[[^ ]* (.*)/GresTypes=gpu\nNodeName=$others \1\nNodeName=$GPU_NODE \1 Gres=gpu:$GPUS/"
}

# Writes the configuration for N nodes; a running controller is told when it changed.
write_slurm_site() {
	local nodes=$1 dir=$STATE/site/slurm conf
	mkdir -p "$dir"
	if [[ ! -e $STATE/site/munge.key ]]; then
		(umask 077 && head -c 1024 /dev/urandom >"$STATE/site/munge.key")
	fi
	slurm_cgroup_conf >"$dir/cgroup.conf"
	conf=$(slurm_conf ctl "$nodes" "$NODE_CPUS" "$NODE_MEMORY_MIB")
	if ((nodes > 1)); then
		conf=$(with_gpus "$nodes" <<<"$conf")
		echo "NodeName=$GPU_NODE Name=gpu File=/dev/slurm-gpu[0-$((GPUS - 1))]" >"$dir/gres.conf"
	else
		rm -f "$dir/gres.conf"
	fi
	if [[ ! -e $dir/slurm.conf || $conf != "$(<"$dir/slurm.conf")" ]]; then
		echo "$conf" >"$dir/slurm.conf"
		if host_is_ready ctl; then
			in_host ctl scontrol reconfigure
		fi
	fi
}

wait_for_nodes() {
	wait_until 60 slurm_is_usable "$1" ||
		die "Slurm's nodes are not usable after 60 s:"$'\n'"$(in_host ctl sinfo -N -l 2>&1)"
}

# All N nodes answer. One that Slurm drained (a job's process that wouldn't die) is put back.
slurm_is_usable() {
	local states
	states=$(timeout 10 nsenter -t "$(host_pid ctl)" -m -n -p -u -i -- sinfo -h -N -o %T 2>/dev/null) || return 1
	if grep -Eq '^(drained|drain|down)$' <<<"$states"; then
		in_host ctl scontrol update "NodeName=node[1-$1]" State=RESUME 2>/dev/null || true
	fi
	(($(grep -Ec '^(idle|mixed|allocated|completing)$' <<<"$states") == $1))
}
