#!/bin/sh
# The first process of a User-mode Linux guest: mounts, then the scripts, then power off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
. "$(dirname "$0")/environment"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir /dev/pts /dev/shm 2>/dev/null
mount -t devpts devpts /dev/pts
mount -t hostfs -o "$SHARED" shared "$SHARED"
export SCRATCH="$SHARED/scratch"
mkdir -p "$SCRATCH"
mount -t tmpfs tmpfs "$SCRATCH"
export TMPDIR="$SCRATCH" PYTHONPYCACHEPREFIX="$SCRATCH/pycache"
busybox ip link set lo up
busybox insmod "$MODULES/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
"$PYTHON" "$LAB/run_scripts.py"
sync
busybox poweroff -f
