# A site whose administrator hands jobs their cgroups, by the plugin in slurm/delegate: pods' limits on version 2.
# shellcheck shell=bash

check_delegated() {
	check "the plugin that hands cgroups over is built and set up" set_up_plugin || return
	check "doctor finds nothing to complain of" doctor_finds_all
	check "cgroups of version 2 do as the crate hpk-cgroup thinks" kernel_test_of_cgroups
	check "the job's cluster is ready, submitted from a session of systemd's" start_job || return
	check "the node is Ready and enforces limits" node_says ready False CgroupsWritable
	check "all of the bubble is in the job's cgroup" bubble_is_in_the_job
	check "pods with limits run" limited_pods_run || return
	check "their limits stand in the pod's cgroup and the container's" limits_stand_in_cgroups
	check "a busy container is held to its share of a CPU" busy_container_is_throttled
	check "the node's figures are those of the cgroup" figures_are_the_cgroup_s
	check "a resize changes the cgroups, without a restart" resize_changes_cgroups
	check "a container beyond its memory is OOMKilled, with all its processes" container_is_oom_killed
	check "scancel leaves nothing, cgroups neither" end_job
}

set_up_plugin() {
	install -d /usr/local/lib/slurm
	gcc -Wall -shared -fPIC -o /usr/local/lib/slurm/hpk_delegate.so /hpk/slurm/delegate/hpk_delegate.c || return 1
	echo 'optional /usr/local/lib/slurm/hpk_delegate.so' >/etc/slurm/plugstack.conf
	# shellcheck disable=SC2016 # the task's shell's
	equal "$(as_hpc "srun sh -c 'stat -c %U /sys/fs/cgroup\$(cut -d: -f3 /proc/self/cgroup)'")" hpc
}

doctor_finds_all() {
	local said
	said=$(as_hpc 'srun hpk/bin/hpk-bubble doctor') || { echo "$said" && return 1; }
	equal "$(grep -cE '^(warning|MISSING)' <<<"$said")" 0 || { echo "$said" && return 1; }
}

kernel_test_of_cgroups() {
	timeout 300 unshare --mount /hpk/bin/hpk-cgroup-test --ignored --test-threads=1
}

limited_pods_run() {
	kubectl_ 'apply -f /hpk/conformance/machine/limited.yaml' || return 1
	within 900 kubectl_ 'wait --for=condition=Ready pod/limited --timeout=60s' ||
		{ kubectl_ 'describe pods'; return 1; }
}

# The cgroup of the pod `limited`.
pod_cgroup() {
	find /sys/fs/cgroup/system.slice -type d -name "pod$(kubectl_ 'get pod limited -o jsonpath={.metadata.uid}')"
}

# Of its container.
container_cgroup() {
	local id
	id=$(kubectl_ 'get pod limited -o jsonpath={.status.containerStatuses[0].containerID}')
	find "$(pod_cgroup)" -mindepth 1 -maxdepth 1 -name "${id##*/}"
}

limits_stand_in_cgroups() {
	local pod container
	pod=$(pod_cgroup) container=$(container_cgroup)
	echo "pod $pod container $container"
	for folder in "$pod" "$container"; do
		equal "$(cat "$folder/memory.max")" $((64 << 20)) || return 1
		equal "$(cat "$folder/cpu.max")" '20000 100000' || return 1
	done
	equal "$(cat "$container/memory.oom.group")" 1 || return 1
	[ -n "$(cat "$container/cgroup.procs")" ]
}

busy_container_is_throttled() {
	local cgroup before after
	cgroup=$(container_cgroup)
	before=$(awk '$1 == "nr_throttled" { print $2 }' "$cgroup/cpu.stat")
	kubectl_ "exec limited -- timeout 10 sh -c 'while :; do :; done'"
	after=$(awk '$1 == "nr_throttled" { print $2 }' "$cgroup/cpu.stat")
	echo "throttled in $before periods, then in $after"
	[ "$after" -gt "$((before + 20))" ]
}

figures_are_the_cgroup_s() {
	within 120 figures_are_near
}

# In one look, memory moves on between the two.
figures_are_near() {
	local cgroup figures said have
	cgroup=$(container_cgroup)
	figures=$(kubectl_ 'get --raw /api/v1/nodes/node1/proxy/metrics/resource') || return 1
	said=$(grep '^container_memory_working_set_bytes{' <<<"$figures" | grep 'pod="limited"' | awk '{ printf "%d", $2 }')
	have=$(($(cat "$cgroup/memory.current") - $(awk '$1 == "inactive_file" { print $2 }' "$cgroup/memory.stat")))
	echo "said $said, the cgroup has $have"
	[ -n "$said" ] && [ "$said" -gt 0 ] && [ "$((said > have ? said - have : have - said))" -lt $((1 << 20)) ] || return 1
	said=$(grep '^container_cpu_usage_seconds_total{' <<<"$figures" | grep 'pod="limited"' | awk '{ printf "%d", $2 }')
	have=$(($(awk '$1 == "usage_usec" { print $2 }' "$cgroup/cpu.stat") / 1000000))
	echo "said $said s of CPU, the cgroup $have s"
	[ -n "$said" ] && [ "$((have - said))" -le 1 ] && [ "$((have - said))" -ge -1 ]
}

resize_changes_cgroups() {
	local folder
	kubectl_ "patch pod limited --subresource resize --patch '{\"spec\":{\"containers\":[{\"name\":\"busybox\",\"resources\":{\"requests\":{\"cpu\":\"100m\",\"memory\":\"96Mi\"},\"limits\":{\"cpu\":\"300m\",\"memory\":\"96Mi\"}}}]}}'" || return 1
	for folder in "$(container_cgroup)" "$(pod_cgroup)"; do
		within 120 reads "$folder/memory.max" $((96 << 20)) || return 1
		within 60 reads "$folder/cpu.max" '30000 100000' || return 1
	done
	equal "$(kubectl_ 'get pod limited -o jsonpath={.status.containerStatuses[0].restartCount}')" 0
}

reads() {
	equal "$(cat "$1")" "$2"
}

container_is_oom_killed() {
	within 300 is_oom_killed || { kubectl_ 'describe pod hungry'; return 1; }
}

is_oom_killed() {
	equal "$(kubectl_ 'get pod hungry -o jsonpath={.status.containerStatuses[0].state.terminated.reason}')" OOMKilled
}
