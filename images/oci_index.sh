# Joins OCI image layouts (oci.sh) of one architecture each to one image. Sourced after oci.sh.
#
#   oci_join LAYOUT NAME TAG LAYOUT…
# shellcheck shell=bash

# An index of its own, to which the layout's index refers: the layout's is no blob, so no registry could have it.
# Prints the digest.
oci_join() {
    local layout=$1 name=$2 tag=$3 one blob
    shift 3
    mkdir -p "$layout/blobs/sha256"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    for one in "$@"; do
        cp -l "$one"/blobs/sha256/* "$layout/blobs/sha256/" 2>/dev/null || cp "$one"/blobs/sha256/* "$layout/blobs/sha256/"
    done
    for one in "$@"; do cat "$one/index.json"; done | jq -cs \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: map(.manifests[])}' >"$layout/.blob"
    blob=$(oci_blob "$layout" "$layout/.blob")
    # A tag for skopeo, a whole name for those who load archives: containerd, and our own store.
    jq -cn --argjson b "$blob" --arg n "localhost/$name:$tag" --arg t "$tag" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
          manifests: [{mediaType: "application/vnd.oci.image.index.v1+json"} + $b +
              {annotations: {"org.opencontainers.image.ref.name": $t, "io.containerd.image.name": $n}}]}' >"$layout/index.json"
    jq -r .digest <<<"$blob"
}
