# What this machine must have; paths, messages, the lock.
# shellcheck shell=bash disable=SC2034 # used by the other files

HPK_CACHE=${HPK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/hpk}
STATE=${HPK_TESTBED_STATE:-/var/lib/hpk-testbed}
# Another state directory is another testbed: its lock and cgroups are named after it.
INSTANCE=${STATE##*/}
readonly LOCK=/run/lock/$INSTANCE.lock

# command:package pairs the testbed itself runs on this machine.
readonly MACHINE_COMMANDS=(
	mmdebstrap:mmdebstrap ip:iproute2 nsenter:util-linux mount:mount openssl:openssl jq:jq perl:perl-base
	gpgv:gpgv tar:tar ssh-keygen:openssh-client
)

die() {
	echo "testbed: $*" >&2
	exit 1
}

require_root() {
	[[ $(id -u) == 0 ]] || die "namespaces of this kind need root: run it with sudo"
}

# step LABEL COMMAND...: runs it, then prints the label with the seconds it took.
step() {
	local label=$1 began=$EPOCHREALTIME
	shift
	"$@"
	printf 'testbed: %-46s %6.1f s\n' "$label" "$(seconds_since "$began")"
}

# seconds_since EPOCHREALTIME, with one decimal.
seconds_since() {
	local tenths=$(((${EPOCHREALTIME/[.,]/} - ${1/[.,]/}) / 100000))
	echo "$((tenths / 10)).$((tenths % 10))"
}

# wait_until SECONDS COMMAND...: polls until the command succeeds; fails at the time limit.
wait_until() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.05
	done
}

# One change of the testbed at a time. Whatever outlives this command must close the descriptor.
take_lock() {
	mkdir -p "${LOCK%/*}"
	exec {LOCK_FD}>"$LOCK"
	flock -w 600 "$LOCK_FD" || die "another testbed command has held $LOCK for 600 s"
}

ensure_machine_packages() {
	local pair missing=()
	for pair in "${MACHINE_COMMANDS[@]}"; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || missing+=(debian-archive-keyring)
	if ((${#missing[@]})); then
		export DEBIAN_FRONTEND=noninteractive
		command -v apt-get >/dev/null || die "this machine has no apt-get; install: ${missing[*]}"
		apt-get update -qq >/dev/null || die "apt-get update failed"
		apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
			die "apt-get install ${missing[*]} failed"
	fi
	if [[ ! -e /dev/fuse ]]; then
		modprobe fuse 2>/dev/null || die "no /dev/fuse, and the module can't be loaded"
	fi
	if [[ ! -e /dev/net/tun ]]; then
		modprobe tun 2>/dev/null || die "no /dev/net/tun, and the module can't be loaded"
	fi
}
