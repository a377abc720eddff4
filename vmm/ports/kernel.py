"""System calls that Python lacks, through the native module. Errors are OSError."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from vmm._native import ffi, lib

__all__ = [
    "bind",
    "bpf_device_program",
    "ffi",
    "lib",
    "mount",
    "openat2",
    "overlay_tree",
    "pidfd_open",
    "pidfd_signal",
    "setns",
    "tree",
    "unmount",
]

# openat2(2)
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
# bpf(2)
BPF_PROG_LOAD = 5
BPF_PROG_TYPE_CGROUP_DEVICE = 15
# mount(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_PRIVATE = 0x40000


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result


def openat2(
    dirfd: int,
    path: str,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
) -> int:
    """Open ``path`` with ``dirfd`` as its root (openat2(2)); close-on-exec."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return _checked(lib.vmm_openat2(dirfd, encoded, flags | os.O_CLOEXEC, mode, resolve), path)


def overlay_tree(layers_dir: str, lowers: Sequence[str], upper: str = "", work: str = "") -> int:
    """Directory descriptor of a detached overlay mount, topmost lower first.

    ``lowers`` are relative to ``layers_dir``; without ``upper`` it is read-only.  The mount is
    visible nowhere and ends when the descriptor is closed.
    """
    if len(lowers) == 1 and not upper:
        return _directory(tree(f"{layers_dir}/{lowers[0]}"))
    options = "lowerdir=" + ":".join(lowers)
    if upper:
        options += f",upperdir={upper},workdir={work}"
    if len(options) >= 4096:
        raise OSError(errno.E2BIG, "too many or too long layer paths for one mount", layers_dir)
    layers, data = os.fsencode(layers_dir), os.fsencode(options)
    return _directory(_checked(lib.vmm_overlay_tree(layers, data, int(not upper)), layers_dir))


def _directory(mount: int) -> int:
    """A readable descriptor of the mount's root in place of open_tree(2)'s O_PATH one."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def tree(path: str, recursive: bool = False) -> int:
    """Descriptor of a detached copy of the mount at ``path`` (open_tree(2))."""
    return _checked(lib.vmm_tree(-100, os.fsencode(path), int(recursive)), path)


def bind(source: str, target: str, *, recursive: bool, read_only: bool) -> None:
    """Bind mount in this mount namespace, private; read-only reaches every mount below, too."""
    made = tree(source, recursive)
    try:
        _checked(lib.vmm_tree_private(made, int(read_only)), target)
        _checked(lib.vmm_tree_attach(made, os.fsencode(target)), target)
    finally:
        os.close(made)


def mount(kind: str, target: str, flags: int, data: str = "") -> None:
    """Mount a file system without a device, or change a mount (mount(2))."""
    _checked(lib.vmm_mount(kind.encode(), os.fsencode(target), flags, data.encode()), target)


def unmount(target: str) -> bool:
    """Detach the topmost mount at ``target`` and all below it; False when there is none."""
    result = lib.vmm_unmount(os.fsencode(target))
    if result in (-errno.EINVAL, -errno.ENOENT):
        return False
    _checked(result, target)
    return True


def pidfd_open(pid: int) -> int:
    """A descriptor that keeps meaning this process (pidfd_open(2))."""
    return _checked(lib.vmm_pidfd_open(pid))


def pidfd_signal(pidfd: int, signum: int) -> None:
    """Signal the process of a pidfd (pidfd_send_signal(2))."""
    _checked(lib.vmm_pidfd_signal(pidfd, signum))


def bpf_device_program(instructions: bytes) -> int:
    """Load a struct bpf_insn[] that decides about devices (bpf(2)); its descriptor."""
    code, licence = ffi.from_buffer(instructions), ffi.new("char[]", b"BSD")
    # union bpf_attr: type, number of instructions, their address, the licence's address.
    attributes = bytearray(128)
    pointers = [int(ffi.cast("uintptr_t", pointer)) for pointer in (code, licence)]
    header = (BPF_PROG_TYPE_CGROUP_DEVICE, len(instructions) // 8, *pointers)
    struct.pack_into("=IIQQ", attributes, 0, *header)
    size = len(attributes)
    return _checked(lib.vmm_bpf(BPF_PROG_LOAD, ffi.from_buffer(attributes), size))


def setns(fd: int, kinds: int = 0) -> None:
    """Enter a namespace (setns(2)); never one whose files Python would then load code from."""
    _checked(lib.vmm_setns(fd, kinds))
