# A cgroup of its own for each host, on every hierarchy this machine has (v1, v2 or both).
# shellcheck shell=bash

readonly CGROUP_PARENT=$INSTANCE

# Lines "TYPE MOUNTPOINT OPTIONS" of this machine's writable cgroup mounts.
cgroup_mounts() {
	local rest fields
	while read -r _ _ _ _ mountpoint rest; do
		read -r -a fields <<<"${rest#*- }"
		case ${fields[0]} in
		cgroup | cgroup2)
			if [[ -w $mountpoint/cgroup.procs ]]; then
				echo "${fields[0]} $mountpoint ${fields[2]}"
			fi
			;;
		esac
	done </proc/self/mountinfo
}

cgroup_create() {
	local host=$1 type mountpoint options parent
	while read -r type mountpoint options; do
		parent=$mountpoint/$CGROUP_PARENT
		mkdir -p "$parent"
		if [[ $type == cgroup2 ]]; then
			cgroup_delegate_v2 "$mountpoint" "$parent"
		elif [[ ,$options, == *,cpuset,* ]]; then
			cat "$mountpoint/cpuset.cpus" >"$parent/cpuset.cpus"
			cat "$mountpoint/cpuset.mems" >"$parent/cpuset.mems"
			echo 1 >"$parent/cgroup.clone_children"
		fi
		mkdir -p "$parent/$host"
	done < <(cgroup_mounts)
}

cgroup_delegate_v2() {
	local controller group
	for group in "$@"; do
		for controller in $(<"$group/cgroup.controllers"); do
			echo "+$controller" >"$group/cgroup.subtree_control" 2>/dev/null || true
		done
	done
}

# cgroup_join HOST PID. On v2 a host's processes are in a leaf of its cgroup, made by `boot`, so that
# the host can enable controllers for the other cgroups it makes.
cgroup_join() {
	local type mountpoint group
	while read -r type mountpoint _; do
		group=$mountpoint/$CGROUP_PARENT/$1
		if [[ $type == cgroup2 && -d $group/host ]]; then
			group+=/host
		fi
		echo "$2" >"$group/cgroup.procs"
	done < <(cgroup_mounts)
}

cgroup_remove_all() {
	local mountpoint
	while read -r _ mountpoint _; do
		if [[ -d $mountpoint/$CGROUP_PARENT ]]; then
			wait_until 5 cgroup_remove_tree "$mountpoint/$CGROUP_PARENT" ||
				die "can't remove the cgroup $mountpoint/$CGROUP_PARENT"
		fi
	done < <(cgroup_mounts)
}

cgroup_remove_tree() {
	find "$1" -depth -type d -exec rmdir {} + 2>/dev/null
}
