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

"$here/serve-images.sh" "$work" || exit 1
# The suite's own containerd keeps its data there; snapshots may not lie on an overlay.
data=/var/lib/containerd-test
mkdir -p "$data" && mount -t tmpfs tmpfs "$data" || exit 1
# containerd looks shims up in PATH.
export PATH=$bin:$PATH SSL_CERT_FILE=$work/ca.pem
TEST_RUNTIME=$runtime timeout "${LIMIT:-900}" "$bin/containerd-client-test" -test.root -test.v -no-criu \
    -test.count "${COUNT:-1}" -test.run "$pattern" >"$work/output" 2>&1
status=$?

# One line a top-level test: PASS, FAIL or SKIP, and its name.
sed -nE 's/^--- (PASS|FAIL|SKIP): ([^ ]+).*/\1 \2/p' "$work/output" | sort -u >"$work/results"
awk -v r="$runtime" '!/^#/ && NF && ($1 == "any" || $1 == r) {print $2}' "$here/skips.list" | sort -u >"$work/listed"
names() { awk -v s="$1" '$1 == s {print $2}' "$work/results" | sort; }
unlisted=$({ names FAIL; names SKIP; } | sort | comm -23 - "$work/listed")
passing=$(names PASS | comm -12 - "$work/listed")
absent=$(cut -d' ' -f2 "$work/results" | sort | comm -13 - "$work/listed")
for name in $unlisted; do
    echo "not listed: $name"
    awk -v n="$name" '$1 == "===" && $2 == "RUN" {on = ($3 == n || index($3, n "/") == 1)} on' "$work/output" | grep -v 'level=' | tail -25
done
for name in $passing; do echo "listed and passing: $name"; done
for name in $absent; do echo "listed and not run: $name"; done
count() { names "$1" | wc -l; }
ok=1
[ -z "$unlisted$passing$absent" ] || ok=0
# A crash or the time limit leaves tests without a result.
grep -qE '^(PASS|FAIL)$' "$work/output" || { echo "the suite broke off (exit $status):"; tail -30 "$work/output"; ok=0; }
[ "$(count PASS)" -gt 0 ] || { tail -30 "$work/output"; ok=0; }
echo "$runtime: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
[ $ok = 1 ]
