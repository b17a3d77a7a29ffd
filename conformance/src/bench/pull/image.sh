# Puts an image of 240 MB (as it is downloaded, in four layers) into the testbed's registry, unless it is there: the host's
# own programs, libraries and data, and random bytes for what that lacks of 240 MB. Prints its size in bytes.
#
#   IMAGE=registry.hpk.test:5000/NAME:TAG WORK=an empty folder
set -euo pipefail
size() { skopeo inspect "docker://$IMAGE" | jq '[.LayersData[].Size] | add'; }
if skopeo inspect --raw "docker://$IMAGE" >/dev/null 2>&1; then
    size
    exit
fi
. /hpk/images/lib.sh
. /hpk/images/oci.sh
layout=$WORK/layout
oci_begin "$layout"
# What can be run in it first.
busybox=$WORK/busybox
skopeo copy -q docker://docker.io/library/busybox:1.37 "oci:$busybox:1"
umoci unpack --rootless --image "$busybox:1" "$busybox.root" >/dev/null 2>&1
oci_layer "$layout" "$busybox.root/rootfs"
for folder in lib/x86_64-linux-gnu lib/aarch64-linux-gnu bin share; do
    [ -d "/usr/$folder" ] || continue
    # Not where they would be found: they need the host's loader.
    mkdir -p "$WORK/part/data/$folder"
    # Files that only root may read are none of a user's.
    (cd "/usr/$folder" && find . -type f -readable -print0 | sort -z | tar --null -T - -cf -) |
        tar -C "$WORK/part/data/$folder" -xf -
    oci_layer "$layout" "$WORK/part"
    rm -rf "$WORK/part"
done
lacks=$((240000000 - $(jq '[.[].size] | add' "$layout/.layers")))
if [ "$lacks" -gt 0 ]; then
    mkdir -p "$WORK/part/data"
    # The same in each run: what a cipher makes of zeros.
    openssl enc -aes-128-ctr -K 0 -iv 0 -in /dev/zero 2>/dev/null | head -c "$lacks" >"$WORK/part/data/random" || true
    [ "$(stat -c %s "$WORK/part/data/random")" = "$lacks" ]
    oci_layer "$layout" "$WORK/part"
fi
oci_end "$layout" '{"Cmd": ["true"]}'
skopeo copy -q "oci:$layout" "docker://$IMAGE"
size
