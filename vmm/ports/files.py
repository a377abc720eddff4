"""Files that are never half written, and advisory locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vmm.model.errors import Conflict
from vmm.ports.space import write_new


def atomic_write(path: Path | str, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data``: temporary file, fsync, rename, fsync of the directory.

    On a full file system the file comes out of the reserve, if that is open (``Reserve``).
    """
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = write_new(temporary, data, mode)
    try:
        os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make a rename in ``path`` durable."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(
    path: Path | str, *, timeout: float | None = None, shared: bool = False
) -> Iterator[int]:
    """Hold flock(2) on ``path``, made if missing; Conflict after ``timeout`` s (None: wait)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        if timeout is None:
            fcntl.flock(fd, how)
        else:
            _lock_before(fd, how, time.monotonic() + timeout, os.fspath(path))
        yield fd
    finally:
        os.close(fd)


def _lock_before(fd: int, how: int, deadline: float, path: str) -> None:
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
        if time.monotonic() >= deadline:
            raise Conflict(
                f"{path} is locked by another vmm process", "wait for it to end, then retry"
            )
        time.sleep(0.01)
