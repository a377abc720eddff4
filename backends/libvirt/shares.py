"""The directory that a guest sees of the host: bind mounts on a small tmpfs of its own.

``<run>/share/N`` is the N-th bind mount or volume; a single file lies in ``N`` as ``file``. What is
to be read-only is bound read-only here, since libvirt 9 refuses that of virtiofs, and so that the
guest's kernel has no say in it. The tmpfs is read-only to the guest as well.
"""

from __future__ import annotations

import os
import stat

from vmm.backends.libvirt import guest, naming
from vmm.model.backend import CompileInput, ResolvedMount
from vmm.model.errors import HostError, Unsupported


def prepare(given: CompileInput) -> None:
    """Make the directory anew, whatever an earlier start left."""
    found = guest.shared(given)
    if not found:
        return
    for _, mount in found:
        _check(mount, given.spec.backend)
    directory = naming.share(given.paths.run)
    cleanup(given.paths.run)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    try:
        _fill(directory, found)
    except OSError as error:
        cleanup(given.paths.run)
        raise HostError(
            f"workload {given.spec.name}: cannot share {error.filename}: {error.strerror}",
            "vmm needs CAP_SYS_ADMIN, and Linux 5.12 or newer",
        ) from None


def cleanup(run: str) -> None:
    """Take the directory back, with all that is mounted there; nothing if it is not there."""
    directory = naming.share(run)
    if not os.path.isdir(directory):
        return
    from vmm.ports.kernel import unmount

    while unmount(directory):
        pass
    os.rmdir(directory)


def _check(mount: ResolvedMount, backend: str) -> None:
    """Only files and directories go through virtiofs."""
    try:
        mode = os.stat(mount.source).st_mode
    except OSError as error:
        raise HostError(
            f"{mount.kind} source {mount.source}: {error.strerror}", "create it, then start again"
        ) from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise Unsupported(
            f"-v {mount.source}:{mount.target}: backend {backend} shares files and directories; "
            "a socket, device or pipe of the host has no other end in a guest",
            "use --backend container, or a published port",
        )


def _fill(directory: str, found: list[tuple[int, ResolvedMount]]) -> None:
    from vmm.ports import kernel

    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", directory, flags, "size=64k,mode=0700")
    kernel.mount("", directory, kernel.MS_PRIVATE)
    for number, mount in found:
        _bind(f"{directory}/{number}", mount)
    kernel.mount("", directory, flags | kernel.MS_REMOUNT | kernel.MS_RDONLY)


def _bind(target: str, mount: ResolvedMount) -> None:
    from vmm.ports import kernel

    os.mkdir(target, 0o700)
    if not mount.directory:
        target = f"{target}/{guest.FILE}"
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    recursive = mount.directory and mount.kind == "bind" and "bind" not in mount.options
    kernel.bind(mount.source, target, recursive=recursive, read_only=mount.read_only)
