# Checks, and what is said of them.
# shellcheck shell=bash

# A virtio port that qemu writes into a file.
readonly REPORT=/dev/virtio-ports/hpk.report
PASSED=0 FAILED=0

say() {
	printf '%s\n' "$*" | tee "$REPORT"
}

# A finding that nothing depends on.
note() {
	say "note  $(uptime_s) $*"
}

uptime_s() {
	printf '%5d s' "$(cut -d. -f1 /proc/uptime)"
}

# check SENTENCE COMMAND…: PASS if the command succeeds, else FAIL and what it printed.
check() {
	local sentence=$1 output
	shift
	if output=$("$@" 2>&1); then
		say "PASS  $(uptime_s) $sentence"
		PASSED=$((PASSED + 1))
	else
		say "FAIL  $(uptime_s) $sentence"
		say "                ${output//$'\n'/$'\n'                }"
		FAILED=$((FAILED + 1))
		return 1
	fi
}

# within SECONDS COMMAND…: until it succeeds, or says by 2 that it never will; then what it printed last.
within() {
	local seconds=$1 end=$((SECONDS + $1)) output status
	shift
	while :; do
		output=$("$@" 2>&1)
		status=$?
		if [ "$status" = 0 ]; then
			printf '%s\n' "$output"
			return
		fi
		if [ "$status" = 2 ] || [ "$SECONDS" -ge "$end" ]; then
			printf '%s\n' "not within $seconds s: $*" "$output"
			return 1
		fi
		sleep 1
	done
}

equal() {
	[ "$1" = "$2" ] || { echo "got '$1', want '$2'" && return 1; }
}

contains() {
	grep -q -- "$2" <<<"$1" || { printf "no '%s' in:\n%s\n" "$2" "$1" && return 1; }
}

# as_hpc COMMAND LINE: as that user, with the environment that a login by ssh has.
as_hpc() {
	local run
	run=/run/user/$(id -u hpc)
	timeout 900 runuser -l hpc -c "export XDG_RUNTIME_DIR=$run DBUS_SESSION_BUS_ADDRESS=unix:path=$run/bus
		export KUBECONFIG=\$HOME/.hpk/kubeconfig; $*"
}

finish() {
	if [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]; then
		say "all passed: $PASSED checks in $(uptime_s)"
	else
		say "FAILED: $FAILED of $((PASSED + FAILED)) checks"
	fi
	sync
}
