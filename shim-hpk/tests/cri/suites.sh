#!/bin/bash
# The two suites that judge a CRI runtime, against a stock containerd whose pods run with one handler;
# on a testbed host, as root.
#
#   suites.sh SUITE HANDLER [PATTERN]
#
# SUITE: critest (of cri-tools) or integration (containerd's own, what of it a handler can be told to).
# HANDLER: runc (the reference) or hpk. The programs and the shim come from /hpk/bin. What is known not to
# pass is listed in SUITE.list with its reason: see ../judge.sh. KEEP=FOLDER keeps output and log.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=../scene.sh
. "$here/../scene.sh"
# shellcheck source=../judge.sh
. "$here/../judge.sh"
suite=${1:?usage: suites.sh critest|integration runc|hpk [PATTERN]}
handler=${2:?usage: suites.sh critest|integration runc|hpk [PATTERN]}

# Of containerd's suite: what takes a handler. The others start a containerd of their own with its
# default runtime, need the failpoint shim or NRI plugins, or have no shim in them (images).
taking_a_handler='AdditionalGids|ContainerCgroup|ContainerEvents|DrainExec|ContainerIOLeak|ContainerLog|ContainerRestart'
taking_a_handler+='|FailedContainerRestart|Stats|SharedPid|StopCancellation|TTYLeak|UpdateContainerResources'
taking_a_handler+='|SymlinkVolumes|WithoutImageRef|DuplicateName|PodDualStack|PodHostname|PodUserNS|^TestContainerdRestart$'
taking_a_handler+='|RuntimeHandler|IPLeakage|TruncIndex|^TestVolumeCopyUp|VolumeOwnership|WithoutMetadata|ImageVolumeBasic'

enter_scene "$0" "$@"
start_containerd || exit 1
case $suite in
critest)
    "$bin/critest" -runtime-endpoint "unix://$socket" -runtime-handler "$handler" \
        -ginkgo.no-color -ginkgo.focus "${3:-.}" -ginkgo.timeout "${LIMIT:-30m}" \
        -ginkgo.skip 'Image (Manager|Identifier|Consistency)|RemoveImage' \
        -ginkgo.json-report "$work/report.json" >"$work/output" 2>&1
    status=$?
    # A spec that a pattern left out has no attempt.
    jq -r '.[].SpecReports[] | select(.LeafNodeType == "It" and .NumAttempts > 0)
        | [({passed: "PASS", skipped: "SKIP"}[.State] // "FAIL"), (.ContainerHierarchyTexts + [.LeafNodeText] | join(" "))]
        | @tsv' "$work/report.json" >"$work/results"
    says() {
        jq -r --arg n "$1" '.[].SpecReports[] | select((.ContainerHierarchyTexts + [.LeafNodeText] | join(" ")) == $n)
            | .Failure.Message, .Failure.Location.FileName' "$work/report.json" | head -c 1500
    }
    ;;
integration)
    # It takes its containerd for the one of that name.
    timeout "${LIMIT:-1200}" "$bin/containerd-cri-test" -test.v -cri-endpoint "unix://$socket" \
        -runtime-handler "$handler" -test.run "${3:-$taking_a_handler}" >"$work/output" 2>&1
    status=$?
    go_results "$work/output" >"$work/results"
    says() { go_says "$work/output" "$1"; }
    ;;
*) echo "suites.sh: $suite is neither critest nor integration" >&2; exit 2 ;;
esac
[ -z "${KEEP:-}" ] || cp "$work/output" "$work/results" "$work/containerd.log" "$KEEP/"
judge "$here/$suite.list" "$handler" "$work/results" says
judged=$?
grep -qE '^(PASS|FAIL)$' "$work/output" || { echo "the suite broke off (exit $status):"; tail -30 "$work/output"; exit 1; }
exit $judged
