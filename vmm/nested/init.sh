#!/bin/busybox sh
# The first process of a lane: from the initramfs to the command, and its exit status to the console.
#
# /dev/ttyS0  the kernel's messages and ours: "pageferry-lane: ready", then "pageferry-lane: exit N",
#             or "pageferry-lane: failed WHY"
# /dev/ttyS1  the command's output, and in a shell its input; nothing else
#
# Disks, in this order: the root, the payload, and, if asked for, one that the output goes to (as a tar).
/bin/busybox mkdir -p /proc /sys /dev /bin /sbin /new
/bin/busybox --install -s /bin
export PATH=/bin

say() { printf '\npageferry-lane: %s\n' "$*" > /dev/ttyS0; }

# Once the host has read the last line it kills the emulator.
halt() { say "$@"; while :; do sleep 1000; done; }

try() { "$@" || halt "failed $*"; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
dmesg -n 1

while read -r module; do try insmod "/modules/$module"; done < /modules/order

# shellcheck disable=SC2046
set -- $(cat /disks)
tries=0
until [ -b "/dev/$1" ] && [ -b "/dev/$2" ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || halt "failed: no disk $1 or $2"
    sleep 0.05
done

# The root stays as it was built. The payload lies over it, and over both what is written: in memory.
mkdir -p /below /payload /above
try mount -t ext4 -o ro,noload "/dev/$1" /below
try mount -t ext4 -o ro,noload "/dev/$2" /payload
try mount -t tmpfs -o size=90% above /above
mkdir /above/upper /above/work
try mount -t overlay -o lowerdir=/payload:/below,upperdir=/above/upper,workdir=/above/work root /new

chmod 1777 /new/tmp
mount --move /dev /new/dev
mount --move /proc /new/proc
mount --move /sys /new/sys
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm

exec chroot /new /bin/busybox sh /lane/run.sh
