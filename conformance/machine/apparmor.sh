# What AppArmor does with HPK. Ubuntu's kernel keeps programs without a profile from user namespaces
# (kernel.apparmor_restrict_unprivileged_userns): from making one, or, from 24.04 on, from capabilities in it. Debian's has no
# such switch: profiles take its place here, on all that Slurm starts, and on hpk-bubble.
# shellcheck shell=bash

readonly SLURMS=hpk-test-slurmstepd BUBBLES=hpk-test-bubble

check_apparmor() {
	check "AppArmor denied nothing to HPK's programs" nothing_was_denied
	check "what Slurm starts makes no user namespaces any more" restrict_slurm || return
	check "Apptainer has the profile that is its own" apptainer_has_its_profile
	check "doctor finds that Apptainer may make them, and nothing to complain of" doctor_names_apptainer
	check "another user's files in a folder of a job that is no more are removed" others_files_are_removed
	check "hpktainer runs a container on the host, with a profile of its own" hpktainer_runs
	check "the job's cluster is ready where Apptainer alone may make them" start_job || return
	check "pods run, one as another user" others_pod_runs
	check "what a killed job has left, the other user's files too, is removed" killed_job_is_cleaned
	check "hpk-bubble makes one, and has no capabilities in it" restrict_bubble || return
	check "doctor finds the same" doctor_names_apptainer
	check "another user's files are removed there, too" others_files_are_removed
}

denials() {
	journalctl -k -o cat --no-pager | grep -F 'apparmor="DENIED"'
}

nothing_was_denied() {
	local denied
	denied=$(denials)
	[ -z "$denied" ] || { echo "$denied" && return 1; }
}

# load NAME PROGRAM RULES: everything is allowed but capabilities and user namespaces, which RULES may add. A program that
# has a profile runs under that.
load() {
	cat >"/etc/apparmor.d/$1" <<END
abi <abi/4.0>,
include <tunables/global>

profile $1 $2 flags=(attach_disconnected) {
  / rwlkm,
  /** rwlkm,
  /** pix,
  network,
  mount,
  remount,
  umount,
  pivot_root,
  signal,
  ptrace,
  unix,
  dbus,
  mqueue,
  io_uring,
  $3
}
END
	# What pasta's profile needs less where an unconfined program starts and ends it.
	mkdir -p /etc/apparmor.d/abstractions/base.d
	printf '%s\n' "signal (receive) peer=$1," '/usr/bin/pasta{,.avx2} mr,' >"/etc/apparmor.d/abstractions/base.d/$1"
	apparmor_parser --replace "/etc/apparmor.d/$1" /etc/apparmor.d/usr.bin.pasta
}

restrict_slurm() {
	local said
	load "$SLURMS" "$(readlink -f /usr/sbin/slurmstepd)" 'capability,' || return 1
	said=$(as_hpc 'srun unshare --user true' 2>&1) && { echo "unshare made one" && return 1; }
	contains "$said" 'Permission denied' || return 1
	contains "$(as_hpc 'srun cat /proc/self/attr/current')" "$SLURMS (enforce)"
}

# Ubuntu restricts a program from when it has made a namespace on, this does from its start; so no job runs under it. What
# writes a namespace's maps is not restricted there.
restrict_bubble() {
	load "$BUBBLES" /home/hpc/hpk/bin/hpk-bubble 'userns, /usr/bin/newuidmap Ux, /usr/bin/newgidmap Ux,' || return 1
	local said
	said=$(as_hpc 'srun hpk/bin/hpk-bubble in-userns probe' 2>&1) && { echo "it has them" && return 1; }
	contains "$said" 'writing setgroups'
}

apptainer_has_its_profile() {
	as_hpc 'mkdir -p empty' || return 1
	contains "$(as_hpc 'srun apptainer --silent exec --bind /usr --bind /lib --bind /lib64 empty /usr/bin/cat /proc/self/attr/current')" 'hpk-apptainer'
}

doctor_names_apptainer() {
	local said
	said=$(as_hpc 'srun hpk/bin/hpk-bubble doctor') || { echo "$said" && return 1; }
	contains "$said" '^ok *user namespaces *allowed to apptainer$' || return 1
	equal "$(grep -cE '^(warning|MISSING)' <<<"$said")" 0 || { echo "$said" && return 1; }
}

others_files_are_removed() {
	local folder
	folder=/tmp/hpk-$(id -u hpc)-99-0123456789abcdef
	runuser -u hpc -- mkdir -m 0700 "$folder" "$folder/run" || return 1
	mkdir -m 0700 "$folder/run/closed" && touch "$folder/run/closed/file" && chown -R 101234:101234 "$folder/run/closed" || return 1
	as_hpc 'srun hpk/bin/hpk-bubble 99 clean' || return 1
	[ ! -e "$folder" ]
}

hpktainer_runs() {
	local said
	said=$(as_hpc 'srun hpk/bin/hpktainer run --rm busybox:1.37 true' 2>&1) && { echo "without a profile, too" && return 1; }
	contains "$said" 'making a user and network namespace: EACCES' || return 1
	install -m 0644 /hpk/vagrant/apparmor/hpktainer /etc/apparmor.d/hpktainer
	echo 'signal (receive) peer=hpktainer,' >/etc/apparmor.d/abstractions/base.d/hpktainer
	apparmor_parser --replace /etc/apparmor.d/hpktainer /etc/apparmor.d/usr.bin.pasta || return 1
	equal "$(as_hpc 'srun hpk/bin/hpktainer run --rm busybox:1.37 echo hello')" hello || return 1
	within 30 no_uplink_is_left || return 1
	# Its images' folder stays, for the next one.
	rm -r /tmp/hpktainer-*
	! denials | grep -v 'operation="userns_create"'
}

no_uplink_is_left() {
	! pgrep -a pasta
}

others_pod_runs() {
	pods_answer || return 1
	kubectl_ 'apply -f /hpk/conformance/machine/other-user.yaml' || return 1
	within 600 kubectl_ 'wait --for=condition=Ready pod/other-user --timeout=60s' ||
		{ kubectl_ 'describe pod other-user'; return 1; }
	others_file
}

# The pod's, as the host has it.
others_file() {
	find /tmp/hpk-* -path '*/closed/file' -uid +99999 | grep .
}

killed_job_is_cleaned() {
	local job
	job=$(cat /run/hpk-job)
	# All at once: scancel's KILL lets a job end in order.
	find /sys/fs/cgroup -path '*slurmstepd.scope/*/user/cgroup.kill' | while read -r file; do echo 1 >"$file"; done
	within 180 job_is_gone "$job" || return 1
	others_file || return 1
	as_hpc "srun hpk/bin/hpk-bubble $job clean" || return 1
	within 60 nothing_is_left "$job"
}
