#!/usr/bin/env bash
# Tests images that release.sh has built: pushed to a registry on the loopback and read back by an engine's library
# (skopeo), architecture by architecture; and built again by buildah from the Containerfile, which must give the same
# files and the same configuration. hpktainer-base and hpk-builder are run, too (test-runs.sh).
#
#   test-release.sh IMAGE…     HPK_ARCHES as for release.sh
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=images/test-runs.sh
. "$IMAGES/test-runs.sh"
[ $# -gt 0 ] || die "usage: test-release.sh IMAGE…"
need skopeo skopeo buildah buildah docker-registry docker-registry jq jq curl curl
# buildah's mounts and root's files ask for root, or for a user namespace of one's own.
if [ "$(id -u)" != 0 ] && [ -z "${HPK_IN_UNSHARE:-}" ]; then
    HPK_IN_UNSHARE=1 exec buildah unshare "$0" "$@"
fi
work=$(mktemp -d)
registry=
cleanup() {
    [ -z "$registry" ] || kill "$registry" 2>/dev/null || true
    # Where it was stopped between a mount and its end.
    if [ -d "$work/storage" ]; then "${buildah[@]}" rm --all >/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
export STORAGE_DRIVER=vfs
buildah=(buildah --root "$work/storage" --runroot "$work/run")
read -ra arches <<<"${HPK_ARCHES:-amd64 arm64}"

start_registry() {
    local port
    # Port 0 would not be told: a free one, and another try where somebody was faster.
    for _ in 1 2 3 4 5; do
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
            "$work/registry" "$port" >"$work/registry.yml"
        docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
        registry=$!
        while kill -0 "$registry" 2>/dev/null; do
            if curl -fsS -o "$work/answer" "http://127.0.0.1:$port/v2/" 2>/dev/null; then
                address=127.0.0.1:$port/hpk
                return
            fi
        done
    done
    die "the registry does not start: $(tail -n 5 "$work/registry.log")"
}

# files_of TREE: a line per file: kind, mode, owner, size or target, digest, name.
files_of() {
    (cd "$1" && find . -mindepth 1 \( -type f -printf '%y %m %U:%G %s ' -exec sha256sum {} \; \) -o \
        -printf '%y %m %U:%G %l %p\n') | LC_ALL=C sort -k 5
}

# same WHAT FILE FILE
same() {
    diff "$2" "$3" >"$work/diff" || die "$1: $(head -n 20 "$work/diff")"
}

start_registry
for name in "$@"; do
    HPK_SKOPEO=--dest-tls-verify=false "$IMAGES/push.sh" "$address" "$name"
    digest=$(cat "$CHECKOUT/bin/images/$name.digest")
    skopeo inspect --tls-verify=false --raw "docker://$address/$name@$digest" >"$work/index"
    for arch in "${arches[@]}"; do
        jq -e --arg a "$arch" 'any(.manifests[]; .platform == {architecture: $a, os: "linux"})' "$work/index" >/dev/null ||
            die "$name's index has no linux/$arch: $(cat "$work/index")"
        skopeo inspect --tls-verify=false --override-arch "$arch" --config "docker://$address/$name@$digest" |
            jq -S '{architecture, os, config}' >"$work/config"
        jq -e --arg a "$arch" '.architecture == $a and (.config.Labels |
            has("org.opencontainers.image.version") and has("org.opencontainers.image.revision"))' "$work/config" >/dev/null ||
            die "$name for $arch has another configuration: $(cat "$work/config")"
        arguments=()
        for label in version revision source; do
            value=$(jq -r ".config.Labels[\"org.opencontainers.image.$label\"] // \"\"" "$work/config")
            arguments+=("--build-arg=${label^^}=$value")
        done
        context=$(readlink -f "$CHECKOUT/bin/images/$name")
        "${buildah[@]}" build --quiet --isolation chroot --platform "linux/$arch" "${arguments[@]}" \
            --tag "$name-$arch" "$context" >"$work/id" 2>"$work/log" || die "buildah: $(tail -n 15 "$work/log")"
        "${buildah[@]}" inspect --type image "$name-$arch" |
            jq -S '.OCIv1 | {architecture, os, config} | .config.Labels |= with_entries(select(.key | startswith("io.buildah") | not))' >"$work/theirs"
        same "$name for $arch: buildah's configuration is another" "$work/config" "$work/theirs"
        container=$("${buildah[@]}" from --arch "$arch" --pull-never "localhost/$name-$arch")
        mounted=$("${buildah[@]}" mount "$container")
        files_of "$mounted" >"$work/theirs"
        "${buildah[@]}" rm "$container" >/dev/null
        mkdir "$work/tree"
        for layer in "$context/$arch"/*.tar; do tar -C "$work/tree" --numeric-owner -xpf "$layer"; done
        files_of "$work/tree" >"$work/ours"
        same "$name for $arch: buildah's files are others" "$work/ours" "$work/theirs"
        echo "$name for $arch: $(wc -l <"$work/ours") files and the configuration as buildah has them"
        if declare -F "runs_${name//-/_}" >/dev/null; then "runs_${name//-/_}" "$arch" "$work/tree"; fi
        rm -rf "$work/tree"
    done
done
