"""File trees by descriptor: walking, measuring and removing without ever following a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from vmm.model.errors import VmmError
from vmm.ports.kernel import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Deeper than this, directories are moved up before they are removed.
_DEEP = 32


class Entry(NamedTuple):
    """One file met on a walk; ``parent`` is its directory's descriptor, open during the step."""

    path: str
    name: str
    parent: int
    status: os.stat_result


def open_inside(root: int, path: str, flags: int = DIRECTORY) -> int:
    """Open ``path`` as a process confined to ``root`` would: links stay inside (openat2(2))."""
    return _open(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_exactly(root: int, path: str, flags: int = DIRECTORY) -> int:
    """Open ``path`` below ``root`` with no link anywhere on the way."""
    return _open(root, path, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)


def _open(root: int, path: str, flags: int, resolve: int) -> int:
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):  # a rename anywhere while ".." was walked
            return openat2(root, path or ".", flags, 0, resolve)
    return openat2(root, path or ".", flags, 0, resolve)


def walk(root: int) -> Iterator[Entry]:
    """Every file below the directory ``root``, sorted by name, a directory before its content."""
    pending = [""]
    while pending:
        directory = pending.pop()
        parent = _open_on_walk(root, directory)
        try:
            below = []
            for name in sorted(os.listdir(parent), key=os.fsencode):
                path = f"{directory}/{name}" if directory else name
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                yield Entry(path, name, parent, status)
                if stat.S_ISDIR(status.st_mode):
                    below.append(path)
            pending.extend(reversed(below))
        finally:
            os.close(parent)


def _open_on_walk(root: int, directory: str) -> int:
    try:
        return open_exactly(root, directory)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise VmmError(f"/{directory[:100]}…: a path of more than 4096 bytes") from None
        raise


def content_size(root: int) -> int:
    """Bytes in the regular files below ``root``, each file counted once however often linked."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for entry in walk(root):
        status = entry.status
        if not stat.S_ISREG(status.st_mode):
            continue
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        total += status.st_size
    return total


def remove_tree(path: str) -> None:
    """Remove a directory with all it holds; one that is not there is fine."""
    parent = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_entry(parent, os.path.basename(path))
    finally:
        os.close(parent)


def remove_entry(parent: int, name: str) -> None:
    """Remove ``name`` in the directory ``parent``, whatever it is; links are not followed."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        directory = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            _empty(directory, directory, 0)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent)


def _empty(directory: int, top: int, depth: int) -> None:
    """Remove all entries of ``directory``; what is too deep is first moved up into ``top``."""
    while True:
        moved = False
        with os.scandir(directory) as entries:
            listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_directory in listed:
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif depth < _DEEP:
                _empty_directory(name, directory, top, depth)
            else:
                _move_up(name, directory, top)
                moved = True
        if depth or not (moved or os.listdir(directory)):
            return


def _empty_directory(name: str, parent: int, top: int, depth: int) -> None:
    directory = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        _empty(directory, top, depth + 1)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def _move_up(name: str, parent: int, top: int) -> None:
    os.rename(name, f".removing-{os.urandom(8).hex()}", src_dir_fd=parent, dst_dir_fd=top)


def sync_filesystem(directory: int) -> None:
    """Make everything written to the file system of ``directory`` durable (syncfs(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(directory) < 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
