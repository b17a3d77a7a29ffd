# The commands, and the order in which the site comes up and goes down.
# shellcheck shell=bash

cmd_up() {
	local nodes='' began=$EPOCHREALTIME
	while (($#)); do
		case $1 in
		--nodes)
			(($# > 1)) || die "up: --nodes wants a number"
			nodes=$2
			shift 2
			;;
		--nodes=*)
			nodes=${1#*=}
			shift
			;;
		*) die "up: unknown argument $1" ;;
		esac
	done
	take_lock
	nodes=${nodes:-$(default_nodes)}
	if [[ ! $nodes =~ ^[1-9][0-9]*$ ]] || ((nodes > MAX_NODES)); then
		die "--nodes wants a number from 1 to $MAX_NODES, not '$nodes'"
	fi

	step "machine packages" ensure_machine_packages
	step "root file system" ensure_rootfs
	step "configuration" write_site "$nodes"
	step "hosts: login, node1..node$nodes" start_site "$nodes"
	step "registry's images" push_images
	step "Slurm: $nodes nodes" wait_for_nodes "$nodes"
	echo "testbed: up in $(seconds_since "$began") s"
}

# As many as there are, else 3.
default_nodes() {
	local count
	count=$(hosts | grep -c '^node') || true
	echo $((count > 0 ? count : 3))
}

write_site() {
	local rootfs
	rootfs=$(rootfs_dir)
	if [[ -e $STATE/rootfs && $(<"$STATE/rootfs") != "$rootfs" ]]; then
		echo "testbed: the root file system changed: its hosts start anew"
		stop_site
	fi
	mkdir -p "$STATE"/{hosts,log,site,home} "$HPK_CACHE"/{registry,test-images}
	chmod 0755 "$STATE" "$STATE/home"
	echo "$rootfs" >"$STATE/rootfs"
	dns_hosts >"$STATE/site/dns-hosts"
	write_registry_site
	write_ssh_site
	write_outside_conf
	write_slurm_site "$1"
	write_home hpc 1000
	write_user_ssh hpc 1000
	write_home eve 1001
	write_home nosub 1002
}

# Readable by all, as many sites have it: what HPK keeps there must protect itself.
write_home() {
	local home=$STATE/home/$1
	if [[ ! -d $home ]]; then
		install -d -o "$2" -g "$2" -m 0755 "$home"
		cp "$(<"$STATE/rootfs")"/etc/skel/.[!.]* "$home"
		chown -R "$2:$2" "$home"
	fi
	write_user_registries "$1" "$2"
}

# The answer names the client's address.
write_outside_conf() {
	cat >"$STATE/site/outside.conf" <<'CONF'
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 512; }
http {
	access_log off;
	default_type text/plain;
	server {
		listen 80;
		location / { return 200 "hello from outside.hpk.test to $remote_addr\n"; }
	}
}
CONF
}

start_site() {
	local host n started=()
	local wanted=(ctl registry outside login)
	for ((n = 1; n <= $1; n++)); do
		wanted+=("node$n")
	done
	for host in $(hosts); do
		if [[ $host == node* ]] && ((${host#node} > $1)); then
			host_kill "$host"
			rm -rf --one-file-system "$(host_dir "$host")"
		fi
	done
	if ! host_is_ready switch; then
		host_kill switch
		host_start switch
		host_wait switch
	fi
	for host in "${wanted[@]}"; do
		if ! host_is_ready "$host"; then
			host_kill "$host"
			host_start "$host"
			started+=("$host")
		fi
	done
	for host in "${started[@]}"; do
		host_wait "$host"
	done
	if [[ ! -e $STATE/checkout || $(<"$STATE/checkout") != "$CHECKOUT" ]]; then
		bind_checkout_except "${started[@]}"
	fi
}

# Hosts that were up before still show the checkout that started them.
bind_checkout_except() {
	local host
	for host in $(hosts); do
		if [[ " $* " != *" $host "* ]]; then
			host_bind_checkout "$host"
		fi
	done
	echo "$CHECKOUT" >"$STATE/checkout"
}

# Ends every host, and waits for this machine's init to reap what is left of their inits.
stop_site() {
	local host pid inits=()
	for host in $(hosts); do
		if pid=$(host_pid "$host"); then
			inits+=("$pid")
			host_kill "$host"
		fi
	done
	for pid in "${inits[@]}"; do
		wait_until 15 process_is_reaped "$pid" || true
	done
	cgroup_remove_all
	rm -rf --one-file-system "$STATE/hosts"
}

process_is_reaped() {
	[[ ! -e /proc/$1 ]]
}

cmd_down() {
	take_lock
	if [[ -e $STATE ]]; then
		stop_site
		rm -rf --one-file-system "$STATE"
	fi
	rm -f "$LOCK"
}

cmd_exec() {
	local user=hpc host
	while [[ ${1:-} == -* ]]; do
		case $1 in
		-u)
			(($# > 1)) || die "exec: -u wants a user"
			user=$2
			shift 2
			;;
		*) die "exec: unknown option $1" ;;
		esac
	done
	host=${1:-}
	shift || die "exec: which host?"
	if [[ ${1:-} == -- ]]; then
		shift
	fi
	(($#)) || set -- bash
	host_exec "$host" "$user" "$@"
}

# wanted_host COMMAND HOST: the host, which must be one the command can do without.
wanted_host() {
	local host=${2:-}
	[[ -n $host ]] || die "$1: which host?"
	case $1:$host in
	*:switch | cut:outside | heal:outside) die "$1: not for $host" ;;
	esac
	[[ -d $(host_dir "$host") ]] || die "$1: no such host: $host"
	echo "$host"
}

cmd_cut() {
	local host
	host=$(wanted_host cut "$@")
	take_lock
	network_cut "$host"
}

cmd_heal() {
	local host
	host=$(wanted_host heal "$@")
	take_lock
	network_heal "$host"
}

cmd_kill() {
	local host
	host=$(wanted_host kill "$@")
	take_lock
	host_kill "$host"
}

cmd_rootfs() {
	step "machine packages" ensure_machine_packages
	step "root file system" ensure_rootfs
}

cmd_images() {
	take_lock
	push_images
}

cmd_status() {
	local host state all_up=0
	if [[ ! -d $STATE/hosts ]]; then
		echo "testbed: down"
		exit 3
	fi
	for host in $(hosts); do
		state=up
		if ! host_is_ready "$host"; then
			state=down all_up=3
		elif network_is_cut "$host"; then
			state='cut'
		fi
		printf '%-10s %-5s %s\n' "$host" "$state" "$(host_address "$host")"
	done
	if host_is_ready ctl; then
		in_host ctl sinfo -N -o '%N %T' -h || true
		in_host ctl squeue || true
	fi
	exit $all_up
}
