"""The file systems inside a workload: its root, what Docker mounts by itself, what the user adds.

Targets are resolved by the native core inside the new root, so that no link of the image
leads out of it.
"""

from __future__ import annotations

import posixpath

from vmm.backends.linux import cgroups, devices, tmpfs
from vmm.model.backend import CompileInput, ResolvedMount
from vmm.model.launch import Op, op

#: Hidden: information of the host, or a way to act on it (Docker's list).
MASKED = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: nosuid, nodev, noexec: nothing to run and no node to open.
_PLAIN = "nosuid,nodev,noexec"
_BIND_FLAGS = frozenset(("nosuid", "nodev", "noexec"))


def root(given: CompileInput) -> list[Op]:
    """The new root, before anything is mounted in it."""
    layout = given.root
    if layout.driver == "directory":
        return [op("root.directory", layout.path)]
    volatile = int(layout.volatile)
    return [
        op("root.overlay", layout.layers_dir, layout.upper, layout.work, volatile, *layout.lowers)
    ]


def operations(given: CompileInput) -> list[Op]:
    """Every mount and node, in order."""
    taken = {normal(mount.target) for mount in given.mounts}
    ops = [*_kernel(given, taken), *_dev(given, taken)]
    chosen = [mount for mount in _etc(given) if mount.target not in taken]
    for mount in sorted([*given.mounts, *chosen], key=lambda m: _depth(m.target)):
        ops.append(_mount(given, mount))
    return ops


def normal(target: str) -> str:
    """An absolute path without ``.``, ``..`` and repeated slashes."""
    return posixpath.normpath("/" + target.lstrip("/"))


def _depth(target: str) -> tuple[int, str]:
    path = normal(target)
    return path.count("/"), path


def _kernel(given: CompileInput, taken: set[str]) -> list[Op]:
    """/proc, /sys and /sys/fs/cgroup."""
    writable = given.spec.security.privileged
    ops = [op("mount.fs", "proc", "proc", "/proc", _PLAIN, "")]
    if "/sys" in taken:
        return ops
    sys_flags = _PLAIN if writable else f"ro,{_PLAIN}"
    ops.append(op("mount.fs", "sysfs", "sysfs", "/sys", sys_flags, ""))
    if "/sys/fs/cgroup" not in taken:
        ops += cgroups.mounts(given)
    return ops


def _dev(given: CompileInput, taken: set[str]) -> list[Op]:
    """A /dev of the workload's own, unless the user mounts something there."""
    if "/dev" in taken:
        return []
    ops = [op("mount.fs", "tmpfs", "tmpfs", "/dev", "nosuid,strictatime", "mode=755,size=65536k")]
    ops += [
        op("dev.node", f"/dev/{name}", "c", major, minor, "0666", 0, 0)
        for name, major, minor in devices.STANDARD
    ]
    ops += [
        op("symlink", "/proc/self/fd", "/dev/fd"),
        op("symlink", "/proc/self/fd/0", "/dev/stdin"),
        op("symlink", "/proc/self/fd/1", "/dev/stdout"),
        op("symlink", "/proc/self/fd/2", "/dev/stderr"),
        op("symlink", "/proc/kcore", "/dev/core"),
    ]
    for target, made in _dev_mounts(given):
        if target not in taken:
            ops.append(made)
    ops.append(op("symlink", "pts/ptmx", "/dev/ptmx"))
    ops += _extra_nodes(given)
    if given.spec.security.privileged:
        ops.append(op("dev.all", *devices.KEPT_BACK))
    if given.spec.process.tty and "/dev/console" not in taken:
        ops.append(op("dev.console"))
    return ops


def _dev_mounts(given: CompileInput) -> list[tuple[str, Op]]:
    pts = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    shm = f"mode=1777,size={given.spec.resources.shm_size}"
    found = [
        ("/dev/pts", op("mount.fs", "devpts", "devpts", "/dev/pts", "nosuid,noexec", pts)),
        ("/dev/shm", op("mount.fs", "tmpfs", "shm", "/dev/shm", _PLAIN, shm)),
    ]
    if given.host.has_mqueue:
        found.append(("/dev/mqueue", op("mount.fs", "mqueue", "mqueue", "/dev/mqueue", _PLAIN, "")))
    return found


def _extra_nodes(given: CompileInput) -> list[Op]:
    made = {f"/dev/{name}" for name, _, _ in devices.STANDARD}
    ops = []
    for device in given.devices:
        path = normal(device.path)
        if path in made:
            continue
        made.add(path)
        parent = posixpath.dirname(path)
        if parent not in ("/", "/dev"):
            ops.append(op("mkdir", parent, "0755", 0, 0))
        numbers = (device.type, device.major, device.minor)
        ops.append(op("dev.node", path, *numbers, f"{device.mode:04o}", device.uid, device.gid))
    return ops


def _etc(given: CompileInput) -> list[ResolvedMount]:
    """The generated files; writable like Docker's unless the root is not."""
    paths = given.paths
    files = (
        ("/etc/hostname", paths.hostname),
        ("/etc/hosts", paths.hosts),
        ("/etc/resolv.conf", paths.resolv_conf),
    )
    read_only = given.spec.security.read_only_root
    return [
        ResolvedMount(
            kind="bind", target=target, source=source, directory=False, read_only=read_only
        )
        for target, source in files
        if source
    ]


def _mount(given: CompileInput, mount: ResolvedMount) -> Op:
    target = normal(mount.target)
    if mount.kind == "tmpfs":
        asked = next((m for m in given.spec.mounts if normal(m.target) == target), None)
        options = tmpfs.parse(target, mount.options, asked)
        return op("mount.fs", "tmpfs", "tmpfs", target, options.flags, options.data)
    flags = ["ro"] if mount.read_only else []
    if mount.directory and mount.kind == "bind" and "bind" not in mount.options:
        flags.append("rec")
    flags += [option for option in mount.options if option in _BIND_FLAGS]
    flags.append(mount.propagation)
    return op("mount.bind", mount.source, target, ",".join(flags))


def restrictions(given: CompileInput) -> list[Op]:
    """Masked and read-only paths, after the sysctls were written."""
    security = given.spec.security
    if security.privileged or security.unmask:
        return []
    masked = [op("mount.proc-mask", path) for path in MASKED]
    return masked + [op("mount.readonly", path) for path in READ_ONLY]
