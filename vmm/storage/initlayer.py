"""The mount points a launch needs and an image lacks, made once in a layer of their own.

So they never show up as changes of a workload.  Where the image has something else in the
way (a link, a FIFO, a device) it is left alone: the launch decides there, by descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

from vmm.storage.tree import DIRECTORY, open_exactly

_DIRECTORIES = ("dev", "proc", "sys", "etc", "dev/pts", "dev/shm", "dev/mqueue")
_FILES = ("dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf")
_LINKS = (("etc/mtab", "/proc/mounts"),)


def fill_init_layer(target: int, view: int | None) -> None:
    """Make in ``target`` what is missing in ``view`` (None: an empty image)."""
    if view is not None:
        _dress_like(target, view)
    for path in _DIRECTORIES:
        parent, name = _place(target, view, path)
        if parent is not None:
            _make_directory(parent, name)
            os.close(parent)
    for path in _FILES:
        parent, name = _place(target, view, path)
        if parent is not None:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, dir_fd=parent)
            os.fchmod(fd, 0o644)
            os.close(fd)
            os.close(parent)
    for path, link in _LINKS:
        parent, name = _place(target, view, path)
        if parent is not None:
            os.symlink(link, name, dir_fd=parent)
            os.close(parent)
    if view is not None:
        _dress_like(target, view)


def _place(target: int, view: int | None, path: str) -> tuple[int | None, str]:
    """The directory in ``target`` to make ``path`` in; None when there is nothing to make."""
    directory, _, name = path.rpartition("/")
    below = _lookup(view, directory) if view is not None else None
    if below == -1:
        return None, name
    try:
        if below is not None and _exists(below, name):
            return None, name
        return _parent(target, directory, below), name
    finally:
        if below is not None:
            os.close(below)


def _lookup(view: int, directory: str) -> int | None:
    """Descriptor of a directory of the image; None if missing, -1 if it is something else."""
    try:
        return open_exactly(view, directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            return -1
        raise


def _exists(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _parent(target: int, directory: str, below: int | None) -> int:
    """The directory in ``target``, which hides the image's: so it must look like it."""
    if not directory:
        return os.dup(target)
    if not _exists(target, directory):
        _make_directory(target, directory)
    fd = os.open(directory, DIRECTORY, dir_fd=target)
    if below is not None:
        _dress_like(fd, below)
    return fd


def _make_directory(parent: int, name: str) -> None:
    os.mkdir(name, 0o755, dir_fd=parent)
    os.chmod(name, 0o755, dir_fd=parent)


def _dress_like(fd: int, other: int) -> None:
    """Owner, mode, kept attributes and times of ``other`` on ``fd``."""
    status = os.fstat(other)
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(other):
        if not name.startswith(("trusted.overlay.", "security.selinux")):
            os.setxattr(fd, name, os.getxattr(other, name))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
