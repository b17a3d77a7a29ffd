# Writes OCI image layouts with tar, gzip or zstd, and jq: no engine, no root, and the same digests
# from the same files. Sourced after lib.sh.
#
#   oci_begin LAYOUT
#   oci_layer LAYOUT DIR|TAR [gzip|zstd]…   each adds a layer
#   oci_end LAYOUT CONFIG-JSON              CONFIG-JSON: the image specification's `config` object
#
# A layer removes what is below it by files `.wh.NAME`, and a folder's whole content by
# `.wh..wh..opq` (image-spec, layer.md, "Whiteouts").
# shellcheck shell=bash

# pack DIR: DIR as a tar stream, owned by root, in a fixed order with fixed times.
pack() {
    tar -C "$1" --format=gnu --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" -cf - .
}

# oci_blob LAYOUT FILE: moves FILE among the blobs; prints {"digest", "size"}.
oci_blob() {
    local digest size
    digest=$(sha256sum <"$2" | cut -d' ' -f1)
    size=$(stat -c %s "$2")
    mv "$2" "$1/blobs/sha256/$digest"
    chmod 0644 "$1/blobs/sha256/$digest"
    printf '{"digest":"sha256:%s","size":%s}' "$digest" "$size"
}

oci_begin() {
    mkdir -p "$1/blobs/sha256"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$1/oci-layout"
    echo '[]' >"$1/.layers"
    echo '[]' >"$1/.diffs"
}

oci_layer() {
    local layout=$1 source=$2 how=${3:-gzip} diff blob
    if [ -d "$source" ]; then pack "$source" >"$layout/.tar"; else cp "$source" "$layout/.tar"; fi
    diff=sha256:$(sha256sum <"$layout/.tar" | cut -d' ' -f1)
    case $how in
    gzip) gzip -n -6 <"$layout/.tar" >"$layout/.blob" ;;
    zstd) zstd -q -9 -T1 <"$layout/.tar" >"$layout/.blob" ;;
    esac
    rm "$layout/.tar"
    blob=$(oci_blob "$layout" "$layout/.blob")
    jq -c --argjson b "$blob" --arg t "application/vnd.oci.image.layer.v1.tar+$how" \
        '. + [{mediaType: $t} + $b]' "$layout/.layers" >"$layout/.new"
    mv "$layout/.new" "$layout/.layers"
    jq -c --arg d "$diff" '. + [$d]' "$layout/.diffs" >"$layout/.new"
    mv "$layout/.new" "$layout/.diffs"
}

oci_end() {
    local layout=$1 config=$2 created platform blob
    created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
    platform="{\"architecture\":\"$GO_ARCH\",\"os\":\"linux\"}"
    jq -cn --argjson c "$config" --argjson p "$platform" --arg t "$created" --slurpfile d "$layout/.diffs" \
        '$p + {created: $t, config: $c, rootfs: {type: "layers", diff_ids: $d[0]},
               history: [$d[0][] | {created: $t, created_by: "hpk images"}]}' >"$layout/.blob"
    blob=$(oci_blob "$layout" "$layout/.blob")
    jq -cn --argjson b "$blob" --slurpfile l "$layout/.layers" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
          config: ({mediaType: "application/vnd.oci.image.config.v1+json"} + $b), layers: $l[0]}' >"$layout/.blob"
    blob=$(oci_blob "$layout" "$layout/.blob")
    jq -cn --argjson b "$blob" --argjson p "$platform" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
          manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", platform: $p} + $b]}' >"$layout/index.json"
    rm "$layout/.layers" "$layout/.diffs"
}

# pause_image LAYOUT: the image hpk-pause: that program, and nothing else.
pause_image() {
    local root=$1.root
    mkdir -p "$root"
    install -m 0755 "$CHECKOUT/bin/hpk-pause" "$root/pause"
    oci_begin "$1"
    oci_layer "$1" "$root"
    oci_end "$1" '{"Entrypoint":["/pause"],"User":"65535:65535","Labels":{"org.opencontainers.image.title":"hpk-pause"}}'
    rm -r "$root"
}
