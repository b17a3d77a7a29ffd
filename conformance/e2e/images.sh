#!/usr/bin/env bash
# Builds the images that Kubernetes' end-to-end suite asks for and the testbed's others don't have,
# from its own module and from Debian packages, as OCI layouts in $HPK_CACHE/e2e-images/current, with
# images.list, as images/test-images/build.sh does. The testbed's registry serves them when they are
# there.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../../images/lib.sh"
# shellcheck source=images/oci.sh
. "$IMAGES/oci.sh"
# shellcheck source=images/test-images/debs.sh
. "$IMAGES/test-images/debs.sh"
# shellcheck source=images/test-images/recipes.sh
. "$IMAGES/test-images/recipes.sh"

IMAGES_AND_NAMES='
nonewprivs e2e-test-images/nonewprivs:1.4
ipc-utils e2e-test-images/ipc-utils:1.4
kitten e2e-test-images/kitten:1.8
nautilus e2e-test-images/nautilus:1.8
regression-issue-74839 e2e-test-images/regression-issue-74839:1.4
resource-consumer e2e-test-images/resource-consumer:1.14
glibc-dns-testing e2e-test-images/glibc-dns-testing:2.0.0
sample-apiserver e2e-test-images/sample-apiserver:1.29.2
etcd etcd:3.6.8-0
perl e2e-test-images/perl:5.26
'
need jq jq zstd zstd dpkg-deb dpkg /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
command -v go >/dev/null || die "go is missing: install Go 1.26 or newer"

# simple IMAGE CONFIG LAYER…: an image of these layers over the base.
simple() {
    local image=$1 config=$2 layer
    shift 2
    base_layer "$WORK/base"
    oci_begin "$OUT/$image"
    oci_layer "$OUT/$image" "$WORK/base"
    for layer; do oci_layer "$OUT/$image" "$layer"; done
    oci_end "$OUT/$image" "{\"Env\":[$SEARCH_PATH],\"Labels\":$(labels "$image")$config}"
}

# compile PACKAGE FILE
compile() {
    mkdir -p "${2%/*}"
    (cd "$HERE" && go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$2" "$1")
}

image_nonewprivs() {
    compile k8s.io/kubernetes/test/images/nonewprivs "$WORK/nnp/usr/local/bin/nnp"
    chmod 6755 "$WORK/nnp/usr/local/bin/nnp"
    simple nonewprivs ',"Cmd":["nnp"]' "$WORK/nnp"
}

image_ipc-utils() {
    debs_unpack "$WORK/ipc" util-linux
    rm -f "$WORK/ipc/var/run"
    simple ipc-utils ',"Cmd":["sh"]' "$WORK/ipc"
}

# pet NAME: a web server of a picture. Mounted as a volume, it is looked at for the name of the
# system that the original is made of.
pet() {
    local root=$WORK/pet-$1
    mkdir -p "$root/etc"
    echo 'PRETTY_NAME="A stand-in for Alpine Linux"' >"$root/etc/os-release"
    compile k8s.io/kubernetes/test/images/agnhost "$root/agnhost"
    cp "$MODULE/test/images/$1/html"/* "$root"
    chmod u+w "$root"/*
    simple "$1" ',"Entrypoint":["/agnhost"],"Cmd":["test-webserver"]' "$root"
}

image_kitten() { pet kitten; }
image_nautilus() { pet nautilus; }

image_regression-issue-74839() {
    compile k8s.io/kubernetes/test/images/regression-issue-74839 "$WORK/r74839/regression-issue-74839"
    simple regression-issue-74839 ',"Entrypoint":["/regression-issue-74839"]' "$WORK/r74839"
}

image_resource-consumer() {
    compile k8s.io/kubernetes/test/images/resource-consumer "$WORK/consumer/consumer"
    compile k8s.io/kubernetes/test/images/resource-consumer/consume-cpu "$WORK/consumer/consume-cpu"
    debs_unpack "$WORK/stress" stress
    rm -f "$WORK/stress/var/run"
    simple resource-consumer ',"Entrypoint":["/consumer"],"ExposedPorts":{"8080/tcp":{}}' "$WORK/stress" "$WORK/consumer"
}

image_glibc-dns-testing() {
    base_layer "$WORK/base"
    tools_layer "$WORK/tools"
    simple glibc-dns-testing ',"Cmd":["sh"]' "$WORK/tools"
}

image_sample-apiserver() {
    compile k8s.io/sample-apiserver "$WORK/sample/sample-apiserver"
    simple sample-apiserver ',"Entrypoint":["/sample-apiserver"]' "$WORK/sample"
}

image_etcd() {
    debs_unpack "$WORK/etcd" etcd-server etcd-client
    rm -f "$WORK/etcd/var/run"
    mkdir -p "$WORK/etcd/usr/local/bin"
    ln -s /usr/bin/etcd "$WORK/etcd/usr/local/bin/etcd"
    simple etcd ',"Cmd":["etcd"]' "$WORK/etcd"
}

# The name only: what asks for it runs `perl -Mbignum=bpi`, which takes perl's library.
image_perl() {
    debs_unpack "$WORK/perl" perl-base
    rm -f "$WORK/perl/var/run"
    simple perl ',"Cmd":["perl"]' "$WORK/perl"
}

build() { # DIR
    local image names name
    OUT=$1 WORK=$1/.work
    MODULE=$(module_field "$HERE/go.mod" k8s.io/kubernetes Dir)
    mkdir "$WORK"
    step "read Debian's index" debs_begin "$WORK/debs"
    DEBS=$WORK/debs
    while read -r image names; do
        [ -n "$image" ] || continue
        step "image $image" "image_$image"
        for name in $names; do
            printf '%s\t%s\n' "$image" "$name" >>"$1/images.list"
        done
    done <<<"$IMAGES_AND_NAMES"
    chmod -R u+w "$WORK"
    rm -rf "$WORK"
}

out=$HPK_CACHE/e2e-images/set-$({ cat "$HERE/images.sh" "$HERE/go.sum" "$IMAGES/oci.sh" "$IMAGES/test-images/recipes.sh" "$IMAGES/test-images/debs.sh"; go version; } | key)
ensure "$out" "images of the end-to-end suite" build
ln -sfn "${out##*/}" "$HPK_CACHE/e2e-images/current.new"
mv -fT "$HPK_CACHE/e2e-images/current.new" "$HPK_CACHE/e2e-images/current"
keep_newest "$HPK_CACHE/e2e-images" 2 "set-*"
