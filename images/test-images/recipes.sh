# The test images: a function each, called with the layout to write. Sourced after oci.sh, debs.sh.
# What they must have is what manifests that people write, and Kubernetes' own tests, rely on.
# shellcheck shell=bash

# The base layer of all: busybox with its applets, users, and the folders programs expect.
base_layer() {
    local root=$1 applet
    [ ! -e "$root" ] || return 0
    usr_merged "$root"
    mkdir -p "$root"/{dev,etc,home,proc,root,run,sys,tmp,var/{log,spool,tmp,www}} "$root"/usr/local/bin
    chmod 0700 "$root/root"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    ln -s /run "$root/var/run"
    debs_unpack "$root" busybox-static
    for applet in $("$root/usr/bin/busybox" --list); do
        [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
    done
    cat >"$root/etc/passwd" <<-END
	root:x:0:0:root:/root:/bin/sh
	daemon:x:1:1:daemon:/usr/sbin:/bin/false
	bin:x:2:2:bin:/bin:/bin/false
	mail:x:8:8:mail:/var/spool/mail:/bin/false
	www-data:x:33:33:www-data:/var/www:/bin/false
	nobody:x:65534:65534:nobody:/home:/bin/false
	END
    cat >"$root/etc/group" <<-END
	root:x:0:
	daemon:x:1:
	bin:x:2:
	tty:x:5:
	mail:x:8:
	www-data:x:33:
	users:x:100:
	nogroup:x:65534:
	END
    printf 'passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\n' >"$root/etc/nsswitch.conf"
    echo 'root:*:::::::' >"$root/etc/shadow"
    chmod 0600 "$root/etc/shadow"
}

# labels NAME: the label object of an image.
labels() {
    printf '{"org.opencontainers.image.title":"%s","io.hpk.test-image":"%s"}' "$1" "$1"
}

SEARCH_PATH='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'

image_busybox() {
    base_layer "$WORK/base"
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"Cmd\":[\"sh\"],\"Labels\":$(labels busybox)}"
}

# A user of its own, by number.
image_nonroot() {
    base_layer "$WORK/base"
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"User\":\"1234\",\"Cmd\":[\"sh\"],\"Labels\":$(labels nonroot)}"
}

# Three layers: the base, nginx as Debian packs it, and a site over it, which removes a file and a
# folder's content of the layer below.
image_nginx() {
    local debian=$WORK/nginx site=$WORK/nginx-site
    base_layer "$WORK/base"
    debs_unpack "$debian" nginx-light
    mkdir -p "$debian"/var/{log/nginx,lib/nginx} "$debian/run" "$debian/docker-entrypoint.d"
    rm -rf "$debian"/etc/nginx/modules-enabled/* "$debian"/var/run
    mkdir -p "$site"/etc/nginx/{conf.d,sites-enabled,sites-available} "$site"/usr/share/nginx/html "$site"/var/log/nginx
    : >"$site/etc/nginx/sites-enabled/.wh.default"
    : >"$site/etc/nginx/sites-available/.wh..wh..opq"
    : >"$site/usr/share/nginx/html/.wh..wh..opq"
    echo '<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><h1>Welcome to nginx!</h1></body></html>' \
        >"$site/usr/share/nginx/html/index.html"
    cat >"$site/etc/nginx/nginx.conf" <<-'END'
	user www-data;
	worker_processes auto;
	error_log /var/log/nginx/error.log notice;
	pid /run/nginx.pid;
	events { worker_connections 1024; }
	http {
	    include /etc/nginx/mime.types;
	    default_type application/octet-stream;
	    access_log /var/log/nginx/access.log;
	    sendfile on;
	    keepalive_timeout 65;
	    include /etc/nginx/conf.d/*.conf;
	}
	END
    cat >"$site/etc/nginx/conf.d/default.conf" <<-'END'
	server {
	    listen 80;
	    server_name localhost;
	    location / { root /usr/share/nginx/html; index index.html index.htm; }
	    error_page 500 502 503 504 /50x.html;
	}
	END
    ln -s /dev/stdout "$site/var/log/nginx/access.log"
    ln -s /dev/stderr "$site/var/log/nginx/error.log"
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_layer "$1" "$debian" zstd
    oci_layer "$1" "$site"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH,\"NGINX_VERSION=1.27\"],\"Entrypoint\":[\"/usr/sbin/nginx\"],
        \"Cmd\":[\"-g\",\"daemon off;\"],\"ExposedPorts\":{\"80/tcp\":{}},\"StopSignal\":\"SIGQUIT\",\"Labels\":$(labels nginx)}"
}

# Network tools, shared by agnhost and netshoot.
tools_layer() {
    [ ! -e "$1" ] || return 0
    debs_unpack "$1" libc-bin bash curl bind9-dnsutils iproute2 iputils-ping netcat-openbsd tcpdump ethtool procps ca-certificates
    # What installing ca-certificates would have made.
    mkdir -p "$1/etc/ssl/certs"
    find "$1/usr/share/ca-certificates" -name '*.crt' -print0 | sort -z | xargs -0 cat >"$1/etc/ssl/certs/ca-certificates.crt"
    [ -e "$1/usr/bin/nc" ] || ln -s nc.openbsd "$1/usr/bin/nc"
    rm -rf "$1/var/run"
    # Debian's busybox runs its own applets from its shell whatever PATH says, and its links come
    # first in some search paths: neither may hide the real programs.
    ln -sf bash "$1/usr/bin/sh"
    local program
    for program in "$1"/usr/sbin/*; do
        program=${program##*/}
        if [ -L "$WORK/base/usr/bin/$program" ] && ! [ -e "$1/usr/bin/$program" ]; then
            : >"$1/usr/bin/.wh.$program"
        fi
    done
}

image_netshoot() {
    base_layer "$WORK/base"
    tools_layer "$WORK/tools"
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_layer "$1" "$WORK/tools"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"Cmd\":[\"sh\"],\"Labels\":$(labels netshoot)}"
}

# Kubernetes' own test image, its program built from the same module as the control plane.
image_agnhost() {
    local root=$WORK/agnhost module
    module=$(module_field "$IMAGES/control-plane/go.mod" k8s.io/kubernetes Dir)/test/images/agnhost
    base_layer "$WORK/base"
    tools_layer "$WORK/tools"
    mkdir -p "$root/uploads" "$root/etc"
    (cd "$IMAGES/control-plane" && step "compile agnhost" \
        go build -trimpath -buildvcs=false -ldflags "-s -w -X main.Version=$(cat "$module/VERSION")" -o "$root/agnhost" k8s.io/kubernetes/test/images/agnhost)
    ln -s agnhost "$root/agnhost-2"
    install -m 0644 "$module"/porter/localhost.{crt,key} "$root/"
    # SupplementalGroups' tests look for these two in the image.
    { cat "$WORK/base/etc/passwd"; echo user-defined-in-image:x:1000:1000::/home:/bin/sh; } >"$root/etc/passwd"
    { cat "$WORK/base/etc/group"; echo user-defined-in-image:x:1000:; echo group-defined-in-image:x:50000:user-defined-in-image; } >"$root/etc/group"
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_layer "$1" "$WORK/tools"
    oci_layer "$1" "$root"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"pause\"],\"Labels\":$(labels agnhost),
        \"ExposedPorts\":{\"80/tcp\":{},\"8080/tcp\":{},\"8081/tcp\":{},\"9376/tcp\":{},\"5000/tcp\":{}}}"
}

image_pause() {
    pause_image "$1"
}

image_iperf3() {
    base_layer "$WORK/base"
    debs_unpack "$WORK/iperf3" iperf3
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_layer "$1" "$WORK/iperf3"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"Entrypoint\":[\"iperf3\"],\"ExposedPorts\":{\"5201/tcp\":{}},\"Labels\":$(labels iperf3)}"
}

image_sockperf() {
    base_layer "$WORK/base"
    debs_unpack "$WORK/sockperf" sockperf
    oci_begin "$1"
    oci_layer "$1" "$WORK/base"
    oci_layer "$1" "$WORK/sockperf"
    oci_end "$1" "{\"Env\":[$SEARCH_PATH],\"Entrypoint\":[\"sockperf\"],\"ExposedPorts\":{\"11111/udp\":{}},\"Labels\":$(labels sockperf)}"
}
