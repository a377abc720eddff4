#!/bin/busybox sh
# The first process of an emulated machine, in its initramfs: the modules, and the host's root below
# a tmpfs, so that it can be written and the host's stays as it is.
b=/bin/busybox
for module in $($b cat /modules/order); do $b insmod "/modules/$module.ko" || echo "no module $module"; done
mount() { $b mkdir -p "$4"; $b mount -t "$1" -o "$2" "$3" "$4"; }
mount virtiofs ro host /host
mount tmpfs mode=755 tmpfs /written
$b mkdir /written/upper /written/work
mount overlay lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /new
$b rm -f /new/etc/libvirt/qemu/*.xml /new/etc/libvirt/qemu/autostart/* # the host's domains
mount proc defaults proc /new/proc
mount sysfs defaults sysfs /new/sys
mount cgroup2 defaults cgroup2 /new/sys/fs/cgroup
mount devtmpfs defaults dev /new/dev
mount devpts defaults devpts /new/dev/pts
for path in dev/shm run; do mount tmpfs mode=755 tmpfs "/new/$path"; done
mount virtiofs defaults shared /new/run/shared
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do $b ln -s "${link#*:}" "/new/dev/${link%%:*}"; done
exec $b switch_root /new /bin/sh /run/shared/main
