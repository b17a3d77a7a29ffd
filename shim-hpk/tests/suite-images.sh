#!/bin/bash
# containerd's suites and critest pull from ghcr.io, registry.k8s.io and gcr.io, and most of their tests
# can't be told of a mirror: so a registry on loopback, with a certificate for those names, holds
# stand-ins made of the testbed's own images. In a testbed host, as root:
#
#   suite-images.sh fetch DIRECTORY    from the testbed's registry into DIRECTORY/layout
#   suite-images.sh serve DIRECTORY    in a mount namespace of its own (it binds /etc/hosts), and in
#                                      whatever network namespace; DIRECTORY/ca.pem when it serves
set -euo pipefail
bin=${BIN:-/hpk/bin}
dir=${2:?usage: suite-images.sh fetch|serve DIRECTORY}

# An image of the layout, and the names it is pulled by.
names='
busybox registry.k8s.io/e2e-test-images/busybox:1.29-2
httpd registry.k8s.io/e2e-test-images/httpd:2.4.39-4
nnp registry.k8s.io/e2e-test-images/nonewprivs:1.3
base ghcr.io/containerd/busybox:1.36 ghcr.io/containerd/alpine:3.14.0
copy-up ghcr.io/containerd/volume-copy-up:2.2
ownership ghcr.io/containerd/volume-ownership:2.1
nginx ghcr.io/containerd/nginx:1.27.0 registry.k8s.io/e2e-test-images/nginx:1.14-2
host-nginx gcr.io/k8s-staging-cri-tools/hostnet-nginx-amd64:latest
groups gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest
pause registry.k8s.io/pause:3.10
'

# fetch IMAGE REPOSITORY:TAG; copy IMAGE NEW; add IMAGE FILE TARGET
fetch() { skopeo copy -q "docker://registry.hpk.test:5000/$2" "oci:$dir/layout:$1"; }
copy() { skopeo copy -q "oci:$dir/layout:$1" "oci:$dir/layout:$2"; }
add() { umoci insert --image "$dir/layout:$1" "$2" "$3" >/dev/null; }

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

# What the Dockerfiles of containerd's integration/images and of cri-tools' images say.
volumes() {
    local pair place file
    copy base copy-up
    for pair in /test_dir=test_file /C:/weird_test_dir=weird_test_file /:colon_prefixed=colon_prefixed_file; do
        place=${pair%=*} file=${pair#*=}
        rm -rf "$dir/volume"
        mkdir "$dir/volume"
        echo test_content >"$dir/volume/$file"
        add copy-up "$dir/volume" "$place"
    done
    umoci config --image "$dir/layout:copy-up" --config.volume /test_dir --config.volume C:/weird_test_dir --config.volume /:colon_prefixed
    rm -rf "$dir/volume"
    mkdir "$dir/volume"
    chown 65534:65534 "$dir/volume"
    copy base ownership
    add ownership "$dir/volume" /test_dir
    umoci config --image "$dir/layout:ownership" --config.volume /test_dir
}

servers() {
    fetch nginx library/nginx:1.27
    copy nginx host-nginx
    cat >"$dir/default.conf" <<'CONF'
server {
    listen 12003;
    server_name localhost;
    location / { root /usr/share/nginx/html; index index.html; }
}
CONF
    add host-nginx "$dir/default.conf" /etc/nginx/conf.d/default.conf
    copy nginx httpd
    umoci config --image "$dir/layout:httpd" --clear config.entrypoint --clear config.cmd \
        --config.cmd sh --config.cmd -c --config.cmd 'echo httpd; exec nginx -g "daemon off;"'
}

# critest calls two applets that Debian's busybox lacks.
plain_busybox() {
    local name
    printf '#!/bin/sh\nexec cat /proc/sysvipc/shm\n' >"$dir/ipcs"
    cat >"$dir/pgrep" <<'SH'
#!/bin/sh
found=1
for place in /proc/[0-9]*; do
    [ "$(cat "$place/comm" 2>/dev/null)" = "$1" ] && { echo "${place#/proc/}"; found=0; }
done
exit $found
SH
    chmod 755 "$dir/ipcs" "$dir/pgrep"
    copy plain busybox
    for name in ipcs pgrep; do add busybox "$dir/$name" /usr/bin/$name; done
}

# Says as whom it runs; setuid root.
nnp() {
    install -m 4755 "$bin/nnp" "$dir/nnp"
    copy plain nnp
    add nnp "$dir/nnp" /usr/local/bin/nnp
    umoci config --image "$dir/layout:nnp" --clear config.cmd --config.cmd nnp
}

predefined_groups() {
    { cat "$dir/passwd"; echo default-user:x:1000:1000::/home:/bin/sh; } >"$dir/passwd-groups"
    { cat "$dir/group"; echo default-user:x:1000:; echo group-defined-in-image:x:50000:default-user; } >"$dir/group-groups"
    copy plain groups
    add groups "$dir/passwd-groups" /etc/passwd
    add groups "$dir/group-groups" /etc/group
    umoci config --image "$dir/layout:groups" --config.user 1000
}

fetch_all() {
    accounts
    fetch plain library/busybox:1.37
    fetch base library/busybox:1.36
    add base "$dir/passwd" /etc/passwd
    add base "$dir/group" /etc/group
    add base "$dir/bash" /usr/bin/bash
    add base "$dir/setuid" /usr/bin/passwd
    volumes
    plain_busybox
    nnp
    servers
    predefined_groups
    fetch pause pause:3.10
}

hosts() { grep -oE ' [a-z0-9.]*/' <<<"$names" | tr -d ' /' | sort -u; }

certificate() {
    local host alternatives=DNS:localhost
    for host in $(hosts); do alternatives+=,DNS:$host; done
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=suite \
        -addext "subjectAltName=$alternatives" \
        -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null
    cat /etc/ssl/certs/ca-certificates.crt "$dir/cert.pem" >"$dir/ca.pem"
}

resolve_here() {
    local host
    cp /etc/hosts "$dir/hosts"
    for host in $(hosts); do echo "127.0.0.1 $host" >>"$dir/hosts"; done
    mount --bind "$dir/hosts" /etc/hosts
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

serve_all() {
    local image pulled name
    certificate
    resolve_here
    registry
    while read -r image pulled; do
        for name in $pulled; do
            SSL_CERT_FILE=$dir/ca.pem skopeo copy -q "oci:$dir/layout:$image" "docker://$name"
        done
    done < <(grep . <<<"$names")
}

case $1 in
fetch) fetch_all ;;
serve) serve_all ;;
*) echo "suite-images.sh: $1 is neither fetch nor serve" >&2; exit 2 ;;
esac
