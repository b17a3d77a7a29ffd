#!/bin/bash
# A GPU's driver in containers, where the driver is made up: a library of Debian's under the name of a driver's,
# in a linker's cache of the test's own, and nodes of other devices. As root in a testbed host, in a mount
# namespace of its own; the shim, hpk-pause and apptainer in PATH. Prints "ok N - name" or "not ok N - name".
set -u
[ -n "${GPU_SCENE:-}" ] || GPU_SCENE=1 exec unshare --mount --propagation private bash "$0" "$@"
image=${IMAGE:-docker.io/library/busybox:latest}
work=$(mktemp -d /tmp/gpu.XXXXXX)
address=$work/sock
name=gpu$$
failed=0
count=0
ctr() { timeout 60 ctr --address "$address" --namespace "$name" "$@"; }
run() { ctr run --rm --runtime io.containerd.hpk.v2 "$@"; }
finish() { kill "$daemon"; wait "$daemon" 2>/dev/null; umount "$work/data"; umount -l /dev /etc/ld.so.cache; rm -rf "$work"; }

# A /dev of its own, as that of a host with two GPUs of NVIDIA's. Their nodes are the FUSE device's, which a
# container's cgroup forbids unless it is told otherwise.
devices() {
    local node
    mkdir "$work/dev" && mount -t tmpfs tmpfs "$work/dev" || return
    for node in null zero full random urandom tty; do touch "$work/dev/$node" && mount --bind "/dev/$node" "$work/dev/$node" || return; done
    mkdir "$work/dev/pts" "$work/dev/shm" "$work/dev/nvidia-caps" || return
    mount --bind /dev/pts "$work/dev/pts" || return
    ln -s pts/ptmx "$work/dev/ptmx"
    ln -s /proc/self/fd "$work/dev/fd"
    for node in nvidiactl nvidia0 nvidia1 nvidia-caps/nvidia-cap1; do mknod -m 666 "$work/dev/$node" c 10 229 || return; done
    mount --move "$work/dev" /dev
}

# A linker's cache and programs, as of a host with NVIDIA's driver.
driver() {
    mkdir "$work/lib" "$work/bin" || return
    # ldconfig goes by the name in the file, which this one's is as long as.
    LC_ALL=C sed 's/liblzma\.so\.5/libcuda.so.1/g' "$(ldconfig -p | awk '/liblzma\.so\.5 .*64/ {print $NF; exit}')" >"$work/lib/libcuda.so.1.9" || return
    printf '#!/bin/sh\necho the driver of the host\n' >"$work/bin/nvidia-smi"
    chmod +x "$work/bin/nvidia-smi"
    echo "$work/lib" >"$work/ld.so.conf"
    ldconfig -C "$work/cache" -f "$work/ld.so.conf" && mount --bind "$work/cache" /etc/ld.so.cache && ldconfig -p | grep -q "libcuda.so.1 .*$work/lib"
}

devices && driver || exit 1
export PATH=$work/bin:$PATH
mkdir "$work/data" && mount -t tmpfs tmpfs "$work/data" || exit 1
containerd --root "$work/data" --state "$work/state" --address "$address" >"$work/log" 2>&1 &
daemon=$!
trap finish EXIT
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr image import "${IMAGE_TAR:?}" >/dev/null || exit 1

check() {
    local promise=$1; shift
    count=$((count + 1))
    if ("$@") >"$work/out" 2>&1; then echo "ok $count - $promise"; return; fi
    failed=1
    echo "not ok $count - $promise"
    tail -20 "$work/out" | sed 's/^/#   /'
}
is() { [ "$1" = "$2" ] || { echo "got: $1"; echo "want: $2"; return 1; }; }

by_annotation() {
    is "$(run --annotation io.hpk.gpu=nv --env LD_LIBRARY_PATH=/opt "$image" $name-nv sh -ec '
        sha256sum </.singularity.d/libs/libcuda.so.1; nvidia-smi; echo "$LD_LIBRARY_PATH"
        for node in nvidiactl nvidia0 nvidia1 nvidia-caps/nvidia-cap1; do : <>/dev/$node; done
        for file in /.singularity.d/libs/libcuda.so.1 /usr/bin/nvidia-smi; do ! touch $file 2>/dev/null; done')" \
        "$(sha256sum <"$work/lib/libcuda.so.1.9")
the driver of the host
/opt:/.singularity.d/libs"
}
in_an_exec_too() {
    ctr run -d --runtime io.containerd.hpk.v2 --annotation io.hpk.gpu=nv "$image" $name-ex sleep 1000 || return
    local said
    said=$(ctr task exec --exec-id e1 $name-ex sh -c 'echo "$LD_LIBRARY_PATH"; : <>/dev/nvidia0 && nvidia-smi')
    ctr task kill -s SIGKILL $name-ex
    ctr task rm -f $name-ex >/dev/null 2>&1
    ctr container rm $name-ex
    is "$said" '/.singularity.d/libs
the driver of the host'
}
by_the_node_asked_for() {
    is "$(run --device /dev/nvidia1 "$image" $name-dev sh -c 'nvidia-smi; ls -d /dev/nvidia* /.singularity.d/libs/*; : <>/dev/nvidiactl')" \
        'the driver of the host
/.singularity.d/libs/libcuda.so.1
/dev/nvidia-caps
/dev/nvidia1
/dev/nvidiactl'
}
not_at_all() {
    is "$(run "$image" $name-plain sh -c 'ls -d /dev/nvidia* /.singularity.d 2>/dev/null; echo "$LD_LIBRARY_PATH"')" '' &&
        is "$(run --device /dev/nvidia0 --annotation io.hpk.gpu=none "$image" $name-none sh -c 'ls -d /dev/nvidia* /.singularity.d 2>/dev/null')" /dev/nvidia0
}
refused() { # WANTED ARGUMENT…
    local wanted=$1 said; shift
    said=$(run "$@" "$image" $name-refused true 2>&1) && { echo "it ran"; return 1; }
    ctr container rm $name-refused >/dev/null 2>&1
    grep -q -- "$wanted" <<<"$said" || { echo "$said"; return 1; }
}
without_the_driver() { refused 'io.hpk.gpu.*/dev/kfd' --annotation io.hpk.gpu=rocm; }
of_no_make() { refused '"nvidia" is not nv' --annotation io.hpk.gpu=nvidia; }
of_amd() {
    mkdir /dev/dri && mknod -m 666 /dev/kfd c 10 229 && mknod -m 666 /dev/dri/renderD128 c 10 229 || return
    is "$(run --annotation io.hpk.gpu=rocm "$image" $name-amd sh -c 'ls /dev/kfd /dev/dri/* && : <>/dev/kfd; ls /dev/nvidia* 2>/dev/null')" '/dev/dri/renderD128
/dev/kfd' || return
    is "$(run --device /dev/kfd "$image" $name-amd2 sh -c 'ls -d /dev/kfd /dev/dri 2>/dev/null')" /dev/kfd
}

check 'by the annotation a container has the driver, read-only, and all GPUs' by_annotation
check 'its execs find it' in_an_exec_too
check 'who asks for a GPU by its node has the driver, and no other GPU' by_the_node_asked_for
check 'others have nothing of it, nor has who says none' not_at_all
check 'a driver that is not here is refused' without_the_driver
check 'a make that is none is refused' of_no_make
check 'by rocm, the nodes of AMD' of_amd
echo "1..$count"
exit $failed
