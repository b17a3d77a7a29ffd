#!/bin/bash
# containerd's own client tests against a stock containerd with one runtime; in a testbed host, as root.
#
#   run.sh RUNTIME [PATTERN]     RUNTIME: io.containerd.runc.v2 (the reference) or io.containerd.hpk.v2
#
# The program and the shim come from /hpk/bin. Tests that are known not to apply are listed with their
# reasons in skips.list; the run fails on any other failure, and on a listed one that passes now.
# The last line gives the counts.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=../judge.sh
. "$here/../judge.sh"
bin=${BIN:-/hpk/bin}
runtime=${1:?usage: run.sh RUNTIME [PATTERN]}
# What runs containers; the rest of the suite (content, images, snapshots, leases …) has no shim in it.
pattern=${2:-Container|Task|Exec|Shim|Daemon|Restart|User}
if [ "${SUITE_NAMESPACE:-}" != 1 ]; then
    # A PID namespace of its own: whatever a broken-off run leaves goes with it.
    SUITE_NAMESPACE=1 exec unshare -m -p -f --kill-child --mount-proc --propagation private "$0" "$@"
fi
work=$(mktemp -d /tmp/suite.XXXXXX)
finish() {
    [ -n "${KEEP:-}" ] && cp "$work/output" "$KEEP/"
    umount "$data" 2>/dev/null
    rm -rf "$work" "$data" /run/containerd-test
}
trap finish EXIT

for step in fetch serve; do "$here/../suite-images.sh" $step "$work" || exit 1; done
# The suite's own containerd keeps its data there; snapshots may not lie on an overlay.
data=/var/lib/containerd-test
mkdir -p "$data" && mount -t tmpfs tmpfs "$data" || exit 1
# containerd looks shims up in PATH.
export PATH=$bin:$PATH SSL_CERT_FILE=$work/ca.pem
TEST_RUNTIME=$runtime timeout "${LIMIT:-900}" "$bin/containerd-client-test" -test.root -test.v -no-criu \
    -test.count "${COUNT:-1}" -test.run "$pattern" >"$work/output" 2>&1
status=$?
go_results "$work/output" >"$work/results"
says() { go_says "$work/output" "$1"; }
judge "$here/skips.list" "$runtime" "$work/results" says
judged=$?
# A crash or the time limit leaves tests without a result.
grep -qE '^(PASS|FAIL)$' "$work/output" || { echo "the suite broke off (exit $status):"; tail -30 "$work/output"; exit 1; }
exit $judged
