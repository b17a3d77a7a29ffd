#!/usr/bin/env bash
# Boots the machine by qemu without KVM, which takes minutes, and lets it run `guest` on what `make dist` made. Prints
# a line for each check; the exit code is 0 when all have passed.
#
#   run.sh              boots, checks, ends
#   run.sh keep         boots and stays, without checks, until its qemu is ended: for looking
#   run.sh on CMD…      runs CMD there as root
#
#   HPK_MACHINE_MINUTES   until it is given up, 90 unless set
#   HPK_MACHINE_STATE     its folder: report, console.log and the second disk
set -euo pipefail
# mke2fs is there, and an ordinary user's has neither.
PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=images/lib.sh
. "$HERE/../../images/lib.sh"

STATE=${HPK_MACHINE_STATE:-$HPK_CACHE/machine-run}
# What the guest needs of the images that the testbed's registry serves.
TEST_IMAGES=(busybox nginx)

# systemd gives up on a device or a service after 90 s, which a busy host makes short.
readonly PATIENCE='systemd.default_device_timeout_sec=1800 systemd.default_timeout_start_sec=1800'

on() {
    ssh -q -p "$(cat "$STATE/ssh-port")" -i "$STATE/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        root@127.0.0.1 -- "$@"
}

# The second disk, /hpk in the machine: as Vagrant gives its machines the checkout's folders.
second_disk() {
    local folder=$STATE/hpk dist image
    dist=$(find "$CHECKOUT/dist" -maxdepth 1 -name "hpk-*-linux-$GO_ARCH.tar.gz" -printf '%T@ %p\n' 2>/dev/null | sort -rn |
        head -n 1 | cut -d' ' -f2-)
    [ -n "$dist" ] || die "no tarball in dist/: run make dist first"
    rm -rf "$folder"
    mkdir -p "$folder"/{bin,dist,conformance,images,slurm}
    [ -x "$CHECKOUT/bin/hpk-cgroup-test" ] || die "no bin/hpk-cgroup-test: make test-machine builds it"
    cp "$CHECKOUT/bin/hpk-cgroup-test" "$folder/bin/"
    cp "$dist" "$folder/dist/"
    cp -r "$CHECKOUT/vagrant" "$folder/"
    cp -r "$HERE" "$folder/conformance/"
    cp -r "$CHECKOUT/slurm/delegate" "$folder/slurm/"
    for image in "${TEST_IMAGES[@]}"; do
        [ -e "$HPK_CACHE/test-images/current/$image" ] || die "no test image $image: run make test-images first"
        cp -rL "$HPK_CACHE/test-images/current/$image" "$folder/images/"
    done
    cp "$STATE/key.pub" "$folder/authorized_keys"
    [ "$1" = check ] || touch "$folder/keep"
    rm -f "$STATE/hpk.ext4"
    mke2fs -q -t ext4 -E root_owner=0:0 -d "$folder" "$STATE/hpk.ext4" "$(($(du -sm "$folder" | cut -f1) * 5 / 4 + 64))M" >/dev/null
    rm -rf "$folder"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Its disk stays as it was built; the network ends at qemu, but for a port of 127.0.0.1 that leads to its sshd.
boot() {
    free_port >"$STATE/ssh-port"
    : >"$STATE/report"
    TMPDIR=$STATE nice -n 15 timeout "$((${HPK_MACHINE_MINUTES:-90} * 60))" qemu-system-x86_64 -name hpk-machine \
        -machine q35 -accel tcg,thread=multi,tb-size=1024 -cpu max,la57=off -smp 2 -m 6G \
        -display none -monitor none -no-reboot \
        -kernel "$machine/vmlinuz" -initrd "$machine/initrd.img" \
        -append "root=/dev/vda rw console=ttyS0 loglevel=4 apparmor=1 security=apparmor panic=-1 $PATIENCE" \
        -drive "file=$machine/disk.ext4,if=virtio,format=raw,snapshot=on" \
        -drive "file=$STATE/hpk.ext4,if=virtio,format=raw,readonly=on" \
        -nic "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:$(cat "$STATE/ssh-port")-:22" \
        -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
        -device virtio-serial-pci -chardev "file,id=report,path=$STATE/report" \
        -device virtserialport,chardev=report,name=hpk.report \
        -serial "file:$STATE/console.log" </dev/null &
    QEMU=$!
    trap 'kill "$QEMU" 2>/dev/null || true' EXIT
}

case ${1:-check} in
on)
    shift
    on "$@"
    exit
    ;;
check | keep) mode=${1:-check} ;;
*) die "usage: run.sh [keep | on CMD…]" ;;
esac
need qemu-system-x86_64 qemu-system-x86 ssh openssh-client python3 python3-minimal
machine=$("$HERE/build.sh")
mkdir -p "$STATE"
rm -f "$STATE/key" "$STATE/key.pub"
ssh-keygen -q -t ed25519 -N '' -f "$STATE/key"
step "the machine's second disk" second_disk "$mode"
boot
if [ "$mode" = keep ]; then
    echo "boots; its console: $STATE/console.log; then: $0 on COMMAND" >&2
    wait "$QEMU"
    exit
fi
tail -f --pid="$QEMU" "$STATE/report" &
status=0
wait "$QEMU" || status=$?
wait || true
[ "$status" != 124 ] || die "not through after ${HPK_MACHINE_MINUTES:-90} minutes; see $STATE/console.log"
[ "$status" = 0 ] || die "qemu ended with $status; see $STATE/console.log"
! grep -q 'Kernel panic' "$STATE/console.log" || die "the machine's kernel ended; see $STATE/console.log"
grep -q '^all passed' "$STATE/report" || die "not all passed; see $STATE/report and $STATE/console.log"
