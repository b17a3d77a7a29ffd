# Hosts: network + mount + PID + UTS + IPC + cgroup namespaces on an overlay of the root file system.
# shellcheck shell=bash

# The directory with everything a host keeps.
host_dir() {
	echo "$STATE/hosts/$1"
}

# Hosts that this testbed has, one a line, whether running or not.
hosts() {
	if [[ -d $STATE/hosts ]]; then
		ls -v "$STATE/hosts"
	fi
}

# PID (in this machine's PID namespace) of the host's init; fails when the host isn't running.
host_pid() {
	local pid started stat file
	file=$(host_dir "$1")/pid
	[[ -r $file ]] || return 1
	read -r pid started <"$file" || return 1
	{ stat=$(<"/proc/$pid/stat"); } 2>/dev/null || return 1
	stat=${stat##*) }
	# shellcheck disable=SC2086 # split on purpose: state is field 3, start time field 22
	set -- $stat
	[[ ${20} == "$started" && $1 != Z && $1 != X ]] || return 1
	echo "$pid"
}

host_is_ready() {
	local pid
	pid=$(host_pid "$1") && [[ -e /proc/$pid/root/run/testbed/ready ]]
}

# Starts the host's boot and returns; `host_wait` waits for its services.
host_start() {
	local host=$1 dir switch_pid=
	dir=$(host_dir "$host")
	mkdir -p "$dir"/{upper,work,root,data} "$STATE/log"
	rm -f "$dir/pid"
	cgroup_create "$host"
	if [[ $host != switch ]]; then
		switch_pid=$(host_pid switch) || die "the switch is not up"
	fi
	(
		exec {LOCK_FD}>&-
		cgroup_join "$host" "$BASHPID"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
			INSTANCE="$INSTANCE" HOST="$host" HOST_DIR="$dir" ADDRESS="$(host_address "$host")" SWITCH_PID="$switch_pid" \
			ROOTFS="$(<"$STATE/rootfs")" STATE="$STATE" CHECKOUT="$CHECKOUT" HPK_CACHE="$HPK_CACHE" \
			SITE_NET="$SITE_NET" OUTSIDE_NET="$OUTSIDE_NET" CGROUPS="$(cgroup_mounts)" \
			unshare --mount --net --pid --uts --ipc --cgroup -- \
			setsid --fork bash "$TESTBED_LIB/boot" </dev/null >"$STATE/log/$host.log" 2>&1
	)
}

host_wait() {
	local host=$1 end=$((SECONDS + 60))
	until host_is_ready "$host"; do
		if ((SECONDS >= end)) || { [[ -e $(host_dir "$host")/pid ]] && ! host_pid "$host" >/dev/null; }; then
			die "host $host did not start; the end of its log:"$'\n'"$(tail -n 15 "$STATE/log/$host.log")"
		fi
		sleep 0.02
	done
}

# The kernel kills every process of the PID namespace before its init is gone, and with them the
# mounts and the link.
host_kill() {
	local pid
	pid=$(host_pid "$1") || return 0
	kill -KILL "$pid"
	wait_until 20 host_is_dead "$1" || die "init of $1 (PID $pid) outlived SIGKILL for 20 s"
}

host_is_dead() {
	! host_pid "$1" >/dev/null
}

# Replaces this process by the command, as the user, in the host.
host_exec() {
	local host=$1 user=$2 pid
	shift 2
	pid=$(host_pid "$host") || die "host $host is not up (testbed status)"
	cgroup_join "$host" $$
	# shellcheck disable=SC2016 # for the shell in the host
	set -- bash -l -c 'umask 022; cd; exec "$@"' bash "$@"
	if [[ -t 0 && -t 1 ]]; then
		set -- script -q -e -c "$(printf '%q ' "$@")" /dev/null
	fi
	exec nsenter -t "$pid" --mount --net --pid --uts --ipc --cgroup -- \
		setpriv --reuid "$user" --regid "$user" --init-groups --reset-env --pdeathsig TERM -- \
		env LANG=C.UTF-8 prlimit --nofile=1024:"$(ulimit -Hn)" -- "$@"
}

# Runs a command as root in a host, bare: no login environment, no terminal.
in_host() {
	local pid
	pid=$(host_pid "$1") || die "host $1 is not up"
	shift
	nsenter -t "$pid" --mount --net --pid --uts --ipc --cgroup -- "$@"
}

# Puts this checkout at /hpk of a running host, in place of the one there. The mount is cloned in
# this machine's mount namespace and attached in the host's, which no bind mount can do.
host_bind_checkout() {
	local pid
	pid=$(host_pid "$1") || return 0
	in_host "$1" umount -l /hpk
	perl -e '
		use constant { OPEN_TREE => 428, MOVE_MOUNT => 429, MOUNT_SETATTR => 442, SETNS => 308 };
		use constant { AT_FDCWD => -100, CLONE_NEWNS => 0x20000, O_CLOEXEC => 02000000 };
		my ($source, $pid, $target) = @ARGV;
		my $empty = "";
		my $tree = syscall(OPEN_TREE, AT_FDCWD, $source, 1 | O_CLOEXEC);
		$tree >= 0 or die "open_tree $source: $!\n";
		my $read_only = pack("QQQQ", 1, 0, 0, 0);
		syscall(MOUNT_SETATTR, $tree, $empty, 0x1000, $read_only, 32) == 0 or die "mount_setattr: $!\n";
		open(my $namespace, "<", "/proc/$pid/ns/mnt") or die "/proc/$pid/ns/mnt: $!\n";
		syscall(SETNS, fileno($namespace), CLONE_NEWNS) == 0 or die "setns: $!\n";
		syscall(MOVE_MOUNT, $tree, $empty, AT_FDCWD, $target, 4) == 0 or die "move_mount $target: $!\n";
	' "$CHECKOUT" "$pid" /hpk
}
