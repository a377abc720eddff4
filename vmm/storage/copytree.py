"""Copying files between two trees by descriptor, with all that belongs to them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from vmm.storage.tree import DIRECTORY, Entry, open_exactly, walk

_COPY_STEP = 1 << 30
_HOST_XATTRS = ("trusted.overlay.", "security.selinux")


def copy_tree(source: int, target: int) -> None:
    """Copy what is below the directory ``source`` into the empty directory ``target``.

    Owners, modes, times, extended attributes, links (hard ones among themselves) and special
    files come along; sockets do not.  ``target`` itself becomes like ``source``.
    """
    links: dict[tuple[int, int], str] = {}
    directories: list[tuple[str, os.stat_result]] = []
    for entry in walk(source):
        above = entry.path.rpartition("/")[0]
        parent = open_exactly(target, above)
        try:
            _copy(entry, target, parent, links)
        finally:
            os.close(parent)
        if stat.S_ISDIR(entry.status.st_mode):
            directories.append((entry.path, entry.status))
    dress_like(target, source)
    for path, status in directories:
        fd = open_exactly(target, path)
        try:
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(fd)


def dress_like(fd: int, source: int) -> None:
    """Give ``fd`` the owner, mode, extended attributes and times of ``source``."""
    status = os.fstat(source)
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_HOST_XATTRS):
            os.setxattr(fd, name, os.getxattr(source, name))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy(entry: Entry, root: int, parent: int, links: dict[tuple[int, int], str]) -> None:
    status = entry.status
    if stat.S_ISSOCK(status.st_mode):
        return
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        first = links.setdefault((status.st_dev, status.st_ino), entry.path)
        if first != entry.path:
            _link(root, first, parent, entry.name)
            return
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(entry.name, 0o700, dir_fd=parent)
        _dress(entry, parent, DIRECTORY)
    elif stat.S_ISREG(status.st_mode):
        _copy_content(entry, parent)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(entry.name, dir_fd=entry.parent), entry.name, dir_fd=parent)
        _own(entry, parent)
    else:
        os.mknod(entry.name, status.st_mode, status.st_rdev, dir_fd=parent)
        _own(entry, parent)
        os.chmod(f"/proc/self/fd/{parent}/{entry.name}", stat.S_IMODE(status.st_mode))


def _link(root: int, first: str, parent: int, name: str) -> None:
    above, _, leaf = first.rpartition("/")
    source = open_exactly(root, above)
    try:
        os.link(leaf, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(source)


def _own(entry: Entry, parent: int) -> None:
    status = entry.status
    os.chown(entry.name, status.st_uid, status.st_gid, dir_fd=parent, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(entry.name, ns=times, dir_fd=parent, follow_symlinks=False)


def _dress(entry: Entry, parent: int, flags: int) -> None:
    source = os.open(entry.name, flags, dir_fd=entry.parent)
    try:
        made = os.open(entry.name, flags, dir_fd=parent)
        try:
            dress_like(made, source)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _copy_content(entry: Entry, parent: int) -> None:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    source = os.open(entry.name, os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=entry.parent)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, source)
        made = os.open(
            entry.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=parent
        )
        stack.callback(os.close, made)
        copy_content(source, made)
        dress_like(made, source)


def copy_content(source: int, target: int) -> None:
    """Copy a file's bytes, sharing blocks where the file system can (copy_file_range(2))."""
    try:
        while os.copy_file_range(source, target, _COPY_STEP):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        while os.sendfile(target, source, None, _COPY_STEP):
            pass
