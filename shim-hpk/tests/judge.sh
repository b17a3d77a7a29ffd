# How a suite's run is judged; sourced.
#
#   judge LIST RUNTIME RESULTS EXPLAIN
#
# RESULTS has a line a test: PASS, FAIL or SKIP, a tab, its name. LIST names what is known not to pass:
# runtime (or any), tab, name, tab, reason. Not listed and not passed, listed and passed, listed and not
# run: each is told, and fails. EXPLAIN NAME prints what a test said. The last line gives the counts.
#
# A reason that begins with `flaky:` is of a test that races its own container: it may pass or fail, which is
# told and counted, but must be run. No test is run twice.
# shellcheck shell=bash
judge() {
    local list=$1 runtime=$2 results=$3 explain=$4 listed flaky unlisted passing absent name
    names() { awk -F '\t' -v s="$1" '$1 == s {print $2}' "$results" | sort -u; }
    count() { names "$1" | grep -c .; }
    listed=$(awk -F '\t' -v r="$runtime" '!/^#/ && NF > 2 && ($1 == "any" || $1 == r) {print $2}' "$list" | sort -u)
    flaky=$(awk -F '\t' -v r="$runtime" '!/^#/ && ($1 == "any" || $1 == r) && $3 ~ /^flaky: / {print $2}' "$list" | sort -u)
    unlisted=$(comm -23 <({ names FAIL; names SKIP; } | sort -u) <(echo "$listed"))
    passing=$(names PASS | comm -12 - <(comm -23 <(echo "$listed") <(echo "$flaky")))
    absent=$(cut -f2 "$results" | sort -u | comm -13 - <(echo "$listed") | grep .)
    while read -r name; do
        [ -z "$name" ] || { echo "not listed: $name"; "$explain" "$name"; }
    done <<<"$unlisted"
    names FAIL | comm -12 - <(echo "$flaky") | sed 's/^/flaky and failed: /'
    [ -z "$passing" ] || sed 's/^/listed and passing: /' <<<"$passing"
    [ -z "$absent" ] || sed 's/^/listed and not run: /' <<<"$absent"
    echo "$runtime: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
    [ -z "$unlisted$passing$absent" ] && [ "$(count PASS)" -gt 0 ]
}

# go_results OUTPUT: of `go test -v`, the top-level tests.
go_results() { sed -nE 's/^--- (PASS|FAIL|SKIP): ([^ ]+).*/\1\t\2/p' "$1" | sort -u; }

# go_says OUTPUT NAME: the end of what a test of `go test -v` printed.
go_says() {
    awk -v n="$2" '$1 == "===" && $2 == "RUN" {on = ($3 == n || index($3, n "/") == 1)} on' "$1" | grep -v 'level=' | tail -25
}
