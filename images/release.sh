#!/usr/bin/env bash
# Builds our images for amd64 and arm64, as an ordinary user and without a container engine, from the programs in
# bin/linux-*. Of each IMAGE, in bin/images/:
#
#   IMAGE.tar             an OCI archive: an image index of both architectures
#   IMAGE.digest          the index's digest, which a registry will know it by
#   IMAGE-ARCH.spdx.json  what is in it (SPDX 2.3)
#   IMAGE/                the same for `docker buildx build` and `buildah build`: Containerfile, layers
#
#   release.sh IMAGE…     hpk-pause, hpk-bubble, hpktainer-base, hpk-builder
#   HPK_ARCHES=amd64      this architecture alone
#   HPK_SOURCE=URL        the label source; else git's remote origin, where that is a URL
set -euo pipefail
# shellcheck source=images/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=images/oci.sh
. "$IMAGES/oci.sh"
# shellcheck source=images/oci_index.sh
. "$IMAGES/oci_index.sh"
# shellcheck source=images/sbom.sh
. "$IMAGES/sbom.sh"
# shellcheck source=images/roots.sh
. "$IMAGES/roots.sh"
# shellcheck source=images/bubble/parts.sh
. "$IMAGES/bubble/parts.sh"
# shellcheck source=images/recipes.sh
. "$IMAGES/recipes.sh"
read -ra ARCHES <<<"${HPK_ARCHES:-amd64 arm64}"
need jq jq

VERSION=$("$CHECKOUT/scripts/version")
REVISION=$(git -C "$CHECKOUT" rev-parse HEAD)
git -C "$CHECKOUT" diff --quiet HEAD -- || REVISION+=-modified
SOURCE=${HPK_SOURCE:-$(git -C "$CHECKOUT" config --get remote.origin.url || true)}
case $SOURCE in
# Less a name and password, which some remotes have.
http://* | https://*) SOURCE=$(sed -E 's,^(https?://)[^/@]*@,\1,; s,\.git$,,' <<<"$SOURCE") ;;
*) SOURCE= ;;
esac

# recipe_of NAME: its folder.
recipe_of() {
    echo "$IMAGES/${1#hpk-}"
}

# image_config NAME: the config object, from its Containerfile, so that there is one place for it.
image_config() {
    awk '/^(ENV|USER|ENTRYPOINT|CMD|LABEL) / { key = $1; sub(/^[A-Z]+ /, ""); print key "\t" $0 }' \
        "$(recipe_of "$1")/Containerfile" |
        sed -e "s|\${VERSION}|$VERSION|; s|\${REVISION}|$REVISION|; s|\${SOURCE}|$SOURCE|" |
        jq -cRn '
            reduce (inputs | split("\t")) as [$key, $value] ({};
                if $key == "ENV" then .Env += [$value]
                elif $key == "USER" then .User = $value
                elif $key == "ENTRYPOINT" then .Entrypoint = ($value | fromjson)
                elif $key == "CMD" then .Cmd = ($value | fromjson)
                else ($value | capture("^(?<k>[^=]+)=\"(?<v>.*)\"$")) as $it | .Labels[$it.k] = $it.v
                end)'
}

build() { # DIR NAME
    local dir=$1 name=$2 arch layouts=() layer
    mkdir "$dir/$name"
    cp "$(recipe_of "$name")/Containerfile" "$dir/$name/"
    for arch in "${ARCHES[@]}"; do
        mkdir "$dir/$name/$arch"
        "layers_${name//-/_}" "$arch" "$dir/$name/$arch"
        oci_begin "$dir/$arch"
        for layer in "$dir/$name/$arch"/*.tar; do oci_layer "$dir/$arch" "$layer"; done
        GO_ARCH=$arch oci_end "$dir/$arch" "$(image_config "$name")"
        layouts+=("$dir/$arch")
        sbom "$name" "$arch" >"$dir/$name-$arch.spdx.json"
    done
    oci_join "$dir/layout" "$name" "$VERSION" "${layouts[@]}" >"$dir/$name.digest"
    pack "$dir/layout" >"$dir/$name.tar"
    rm -r "$dir/layout" "${layouts[@]}"
}

# What Debian has newer since is no reason to build anew; a recipe's change is.
inputs() { # NAME
    echo "$VERSION $REVISION $SOURCE ${ARCHES[*]}"
    cat "$(recipe_of "$1")/Containerfile" "$IMAGES"/{release,recipes,oci,oci_index,sbom,roots}.sh "$CHECKOUT/Cargo.lock"
    "inputs_${1//-/_}"
}

[ $# -gt 0 ] || die "usage: release.sh IMAGE…"
for name in "$@"; do
    declare -F "layers_${name//-/_}" >/dev/null || die "$name is none of our images: hpk-pause, hpk-bubble, hpktainer-base, hpk-builder"
    whole=$HPK_CACHE/release/$name-$(inputs "$name" | key)
    ensure "$whole" "image $name for ${ARCHES[*]}" build "$name"
    keep_newest "$HPK_CACHE/release" 2 "$name-*"
    for file in "$whole/$name".* "$whole/$name"-*.spdx.json; do publish "$file" "$CHECKOUT/bin/images/${file##*/}"; done
    ln -sfn "$whole/$name" "$CHECKOUT/bin/images/$name"
    echo "bin/images/$name.tar: $(du -h --apparent-size "$CHECKOUT/bin/images/$name.tar" | cut -f1), $(cat "$CHECKOUT/bin/images/$name.digest")" >&2
done
