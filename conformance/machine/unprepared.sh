# A site whose administrator has done nothing for HPK: Slurm keeps its cgroups, no module is loaded beforehand.
# shellcheck shell=bash

check_unprepared() {
	check "a task's cgroup is root's" task_cgroup_is_root_s
	check "doctor finds all but a cgroup for pods' limits" doctor_warns_of_limits_alone
	check "the job's cluster is ready" start_job || return
	check "the node is Ready and says that limits are not enforced" node_says ready True CgroupsNotWritable
	check "all of the bubble is in the job's cgroup" bubble_is_in_the_job
	check "a pod runs, answers another one, and finds names" pods_answer
	check "an ending in order leaves nothing" end_job "--batch --signal=TERM"
	note "modules loaded now: $(loaded_modules)"
}

# The cgroup of a command that srun starts, and its owner.
task_cgroup_is_root_s() {
	local found
	# shellcheck disable=SC2016 # the job's shell's
	found=$(as_hpc "srun sh -c 'path=\$(cut -d: -f3 /proc/self/cgroup); echo \$path; stat -c %U /sys/fs/cgroup\$path; cat /sys/fs/cgroup\$path/cgroup.controllers'") || return 1
	note "srun's task: $(xargs <<<"$found")"
	contains "$found" '/step_0/user/task' && equal "$(sed -n 2p <<<"$found")" root
}

doctor_warns_of_limits_alone() {
	local said
	said=$(as_hpc 'srun hpk/bin/hpk-bubble doctor') || { echo "$said" && return 1; }
	note "doctor:"$'\n'"$said"
	equal "$(grep -Ev '^ok ' <<<"$said" | grep -E '^(warning|MISSING)' | sed -E 's/ {2,}/|/g' | cut -d'|' -f2)" "pods' limits"
}

# start_job: until its output says Ready. Each step of that is given more than the 120 s that do elsewhere.
start_job() {
	JOB=$(as_hpc "cd hpk && HPK_START_SECONDS=1200 sbatch --parsable --nodes=1 --time=04:00:00 --output=\$HOME/job-%j.log hpk.slurm") || { echo "$JOB" && return 1; }
	echo "$JOB" >/run/hpk-job
	within 3600 job_is_ready
}

job_is_ready() {
	local job log
	job=$(cat /run/hpk-job)
	log=/home/hpc/job-$job.log
	grep -Eo 'Ready in .*' "$log" && return
	tail -n 20 "$log"
	squeue -h -j "$job" 2>/dev/null | grep -q . || return 2
	return 1
}

kubectl_() {
	as_hpc "kubectl --request-timeout=120s $*"
}

# node_says ready STATUS REASON: of its condition LimitsNotEnforced.
node_says() {
	local node
	within 600 kubectl_ 'wait --for=condition=Ready node/node1 --timeout=60s' || return 1
	node=$(kubectl_ 'get node node1 -o json') || return 1
	equal "$(jq -r '.status.conditions[] | select(.type == "LimitsNotEnforced") | .status, .reason' <<<"$node" | xargs)" "$2 $3"
}

# Every process of the user's in the bubble is where Slurm finds it.
bubble_is_in_the_job() {
	local job pid cgroup outside=
	job=$(cat /run/hpk-job)
	for pid in $(pgrep -u hpc -f 'appinit|hpk-kubelet|hpk-net-daemon|pasta|etcd|kube-apiserver') $(pgrep --uid 100000); do
		cgroup=$(cut -d: -f3 "/proc/$pid/cgroup" 2>/dev/null) || continue
		case $cgroup in
		*slurmstepd.scope/*/step_0/user/*) ;;
		*) outside+="$pid $(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-80): $cgroup"$'\n' ;;
		esac
	done
	[ -z "$outside" ] || { printf '%s' "$outside" && return 1; }
	pgrep -u hpc -f hpk-kubelet >/dev/null
}

pods_answer() {
	kubectl_ 'apply -f /hpk/conformance/machine/pods.yaml' || return 1
	within 900 kubectl_ 'wait --for=condition=Ready pod/web pod/asks --timeout=60s' ||
		{ kubectl_ 'get pods -A; kubectl describe pods'; return 1; }
	within 300 kubectl_ 'exec asks -- wget -qO- -T 10 http://web.default.svc.cluster.local/'
}

# end_job HOW: by scancel with those options; nothing of the user's is left.
end_job() {
	local job
	job=$(cat /run/hpk-job)
	as_hpc "scancel $* $job" || return 1
	within 180 job_is_gone "$job" || return 1
	within 60 nothing_is_left "$job"
}

job_is_gone() {
	! squeue -h -j "$1" 2>/dev/null | grep . && node_is_idle
}

nothing_is_left() {
	local left
	# What a login leaves of systemd's own is none of ours.
	left=$(
		ps -u hpc -o pid,args --no-headers | grep -v -e 'systemd --user' -e '(sd-pam)' -e dbus-daemon
		ps -e -o uid,pid,args --no-headers | awk '$1 >= 100000'
		find /tmp /var/tmp -maxdepth 1 -user hpc
		find /sys/fs/cgroup -type d -path "*slurmstepd.scope/*" \( -name "job_$1" -o -name 'hpk-*' -o -name 'step_*' \)
		grep -e ' /tmp/hpk' /proc/mounts
	)
	[ -z "$left" ] || { echo "$left" && return 1; }
}
