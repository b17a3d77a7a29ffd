#!/usr/bin/env bash
# Pushes our images, as release.sh has built them, to REGISTRY/IMAGE:VERSION, with the credentials of the usual auth
# file (`skopeo login`). A registry must know each by the digest that its digest file names.
#
#   push.sh REGISTRY[/PATH] IMAGE…
#   HPK_SKOPEO="--dest-tls-verify=false"   further options of skopeo copy
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/lib.sh"
[ $# -ge 2 ] || die "usage: push.sh REGISTRY[/PATH] IMAGE…"
registry=${1%/}
shift
case $registry in
*://*) die "$registry: a registry is named without ${registry%%://*}://" ;;
esac
need skopeo skopeo jq jq
read -ra options <<<"${HPK_SKOPEO:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in "$@"; do
    archive=$CHECKOUT/bin/images/$name.tar
    [ -e "$archive" ] || die "$archive is missing: run make images first"
    version=$(tar -xOf "$archive" ./index.json | jq -r '.manifests[0].annotations["org.opencontainers.image.ref.name"]')
    step "push $registry/$name:$version" skopeo copy --quiet --all --preserve-digests --retry-times 3 "${options[@]}" \
        --digestfile "$work/digest" "oci-archive:$archive:$version" "docker://$registry/$name:$version"
    [ "$(cat "$work/digest")" = "$(cat "$CHECKOUT/bin/images/$name.digest")" ] ||
        die "$registry has $name as $(cat "$work/digest"), not as $(cat "$CHECKOUT/bin/images/$name.digest")"
done
