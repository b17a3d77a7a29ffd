#!/bin/bash
# The suite pulls from ghcr.io and registry.k8s.io, and has no way to be told of a mirror: so a registry
# on this host's loopback, with a certificate for those names, holds stand-ins made of the testbed's
# own images. Run in a testbed host, as root, in a mount namespace of its own (it binds /etc/hosts):
#
#   serve-images.sh DIRECTORY     prints nothing; DIRECTORY/ca.pem when it serves
set -euo pipefail
dir=$1
names='ghcr.io registry.k8s.io'

certificate() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=suite \
        -addext "subjectAltName=DNS:ghcr.io,DNS:registry.k8s.io" \
        -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null
    cat /etc/ssl/certs/ca-certificates.crt "$dir/cert.pem" >"$dir/ca.pem"
}

registry() {
    cat >"$dir/registry.yml" <<YAML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $dir/storage}}
http: {addr: 127.0.0.1:443, tls: {certificate: $dir/cert.pem, key: $dir/key.pem}}
YAML
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
    for _ in $(seq 100); do
        (: </dev/tcp/127.0.0.1/443) 2>/dev/null && return
        sleep 0.1
    done
    cat "$dir/registry.log" >&2
    exit 1
}

resolve_here() {
    local name
    cp /etc/hosts "$dir/hosts"
    for name in $names; do echo "127.0.0.1 $name" >>"$dir/hosts"; done
    mount --bind "$dir/hosts" /etc/hosts
}

# stand_in TAG: the image copied to $dir/layout:TAG, to be changed.
stand_in() { skopeo copy -q "docker://registry.hpk.test:5000/library/busybox:1.36" "oci:$dir/layout:$1"; }
# add TAG FILE TARGET
add() { umoci insert --image "$dir/layout:$1" "$2" "$3" >/dev/null; }
push() { SSL_CERT_FILE=$dir/ca.pem skopeo copy -q "oci:$dir/layout:$1" "docker://$2"; }

# The users and programs that the suite's tests name, and which the plain busybox image lacks.
accounts() {
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false \
        sys:x:3:3:sys:/dev:/bin/false www-data:x:33:33:www-data:/var/www:/bin/false \
        nobody:x:65534:65534:nobody:/home:/bin/false >"$dir/passwd"
    printf '%s\n' root:x:0: daemon:x:1: sys:x:3: www-data:x:33: nobody:x:65534: >"$dir/group"
    printf '#!/bin/sh\nexec sh "$@"\n' >"$dir/bash"
    chmod 755 "$dir/bash"
    install -m 4755 "$dir/bash" "$dir/setuid"
}

images() {
    local image
    accounts
    stand_in base
    add base "$dir/passwd" /etc/passwd
    add base "$dir/group" /etc/group
    add base "$dir/bash" /usr/bin/bash
    add base "$dir/setuid" /usr/bin/passwd
    for image in busybox:1.36 alpine:3.14.0; do push base "ghcr.io/containerd/$image"; done
    mkdir -p "$dir/empty"
    skopeo copy -q "oci:$dir/layout:base" "oci:$dir/layout:volume"
    add volume "$dir/empty" /test_dir
    for image in volume-copy-up:2.2 volume-ownership:2.1; do push volume "ghcr.io/containerd/$image"; done
    skopeo copy -q docker://registry.hpk.test:5000/pause:3.10 "oci:$dir/layout:pause"
    push pause registry.k8s.io/pause:3.10
}

certificate
resolve_here
registry
images
