"""A full file system: telling what is full, and room kept for what makes room again.

Where nothing can be written, nothing can be removed in order either: a removal begins with an entry
in the journal.  So an instance keeps a few small files with their blocks.  One of them is *renamed*
to become the file that has to be written, so that nobody who fills the disk can get at its room in
between, as he could were it given up first.  Only what makes room may take one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from vmm.model.errors import NoSpace

_HINT = "make room, then try again: vmm system df, vmm image prune, vmm rm"

#: Bytes: too few for a file of another program's.
_FEW = 64 << 10


def is_full(error: OSError) -> bool:
    """Whether the file system, its inodes or a quota are used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_space(*paths: str | os.PathLike[str]) -> NoSpace:
    """The error for the user: which of the file systems that hold ``paths`` is full; the first, if
    all have room again since what was half made was removed."""
    found = [(place, os.statvfs(place)) for place in (_existing(os.fspath(p)) for p in paths)]
    place, status = next((one for one in found if _is_exhausted(one[1])), found[0])
    return _error("no inode" if _lacks_inodes(status) else "no space", place, status)


def _lacks_inodes(status: os.statvfs_result) -> bool:
    """btrfs counts none: 0 of 0."""
    return status.f_files > 0 and not status.f_favail


def _is_exhausted(status: os.statvfs_result) -> bool:
    return _lacks_inodes(status) or status.f_bavail * status.f_frsize < _FEW


def _error(what: str, place: str, status: os.statvfs_result) -> NoSpace:
    from vmm.model.human import size

    free = size(status.f_bavail * status.f_frsize)
    total = size(status.f_blocks * status.f_frsize)
    inodes = f", {status.f_favail} of {status.f_files} inodes" if status.f_files else ""
    place = _mount_point(place)
    return NoSpace(
        f"{what} left on the file system at {place} ({free} of {total}{inodes} are free now)", _HINT
    )


def exhausted(path: str | os.PathLike[str]) -> NoSpace | None:
    """Why another program, which does not say so, may have failed to write at ``path``."""
    return no_space(path) if _is_exhausted(os.statvfs(_existing(os.fspath(path)))) else None


def _existing(path: str) -> str:
    path = os.path.realpath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


@contextlib.contextmanager
def explained(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """A full file system as NoSpace: where the error says, else of those that hold ``paths``."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        named = [name for name in (error.filename2, error.filename) if _absolute(name)][:1]
        raise no_space(*(named or paths)) from None


def _absolute(name: object) -> bool:
    """Others are relative to some descriptor."""
    return isinstance(name, str) and os.path.isabs(name)


class Reserve:
    """``COUNT`` files of ``SIZE`` bytes in ``directory``, made when there is room."""

    COUNT = 8
    SIZE = 128 << 10
    #: Bytes and inodes that must be free beside it.
    BESIDE, INODES = 2 << 20, 64

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)

    def _files(self) -> Iterable[str]:
        return (os.path.join(self.directory, str(number)) for number in range(self.COUNT))

    def stock(self) -> None:
        """Make what is missing, if there is room; any number of processes may."""
        missing = [path for path in self._files() if not _is_whole(path, self.SIZE)]
        with contextlib.suppress(OSError):  # no room after all: a later command's turn
            if missing and self._affordable(len(missing)):
                os.makedirs(self.directory, mode=0o700, exist_ok=True)
                for path in missing:
                    _allocate(path, self.SIZE)

    def _affordable(self, count: int) -> bool:
        status = os.statvfs(os.path.dirname(self.directory))
        inodes = not status.f_files or status.f_favail > self.INODES
        return inodes and status.f_bavail * status.f_frsize > self.BESIDE + count * self.SIZE

    def take(self, path: str) -> int:
        """A file of the reserve as ``path``, open to be written; OSError when there is none for
        it."""
        for one in self._files():
            with contextlib.suppress(FileNotFoundError):
                os.rename(one, path)
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def put_back(self, path: str, fd: int) -> bool:
        """Take back what ``take`` gave, if it still has its size; its content is blanked first, as
        somebody may have it open by its former name."""
        missing = next((one for one in self._files() if not os.path.exists(one)), "")
        if not missing or os.fstat(fd).st_size != self.SIZE:
            return False
        os.pwrite(fd, b" " * self.SIZE, 0)
        os.rename(path, missing)
        return True

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """What is written within the block may take from the reserve."""
        token = _open_reserve.set(self)
        try:
            yield
        finally:
            _open_reserve.reset(token)


_open_reserve: ContextVar[Reserve | None] = ContextVar("reserve", default=None)


def write_new(path: str, data: bytes, mode: int = 0o600, *, borrow: bool = False) -> int:
    """A file with this content, out of an open reserve if there is no room otherwise; its
    descriptor.  Nothing is left after an error.  ``borrow``: for ``discard``; blanks may follow."""
    try:
        return _filled(os.open(path, _NEW, mode), path, data, mode)
    except OSError as error:
        reserve = _open_reserve.get()
        if reserve is None or not is_full(error):
            raise
    data = data.ljust(reserve.SIZE) if borrow else data
    return _filled(reserve.take(path), path, data, mode)


def discard(path: str, fd: int) -> None:
    """Remove what ``write_new`` made; what came out of the reserve goes back.  Missing is fine."""
    reserve = _open_reserve.get()
    with contextlib.suppress(FileNotFoundError):
        if reserve is None or not reserve.put_back(path, fd):
            os.unlink(path)


_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def _filled(fd: int, path: str, data: bytes, mode: int) -> int:
    try:
        os.fchmod(fd, mode)
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], done)
        if os.fstat(fd).st_size != len(data):
            os.ftruncate(fd, len(data))
    except BaseException:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    return fd


def _is_whole(path: str, size: int) -> bool:
    """A crash of the host may have left it short, as it was not waited for the disk."""
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _allocate(path: str, size: int) -> None:
    """Of random bytes: zeros, or what is only promised (posix_fallocate(3)), takes no room where
    the file system compresses."""
    temporary = f"{path}.{os.getpid()}.tmp"
    os.close(write_new(temporary, os.urandom(size)))
    os.rename(temporary, path)
