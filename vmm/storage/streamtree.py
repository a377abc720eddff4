"""A file stream as files of the host, by descriptor and without following links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from vmm.model import filestream as fs
from vmm.model.errors import HostError, VmmError
from vmm.model.filestream import Entry, StreamReader, unchanged
from vmm.ports.space import is_full, no_space
from vmm.storage.tree import DIRECTORY, open_exactly
from vmm.storage.treestream import FOREIGN

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 4096
_ZEROES = bytes(_BLOCK)


def stream_to_tree(
    reader: StreamReader,
    directory: int,
    *,
    owners: bool,
    change: Callable[[Entry], Entry] = unchanged,
) -> None:
    """Make the files of a stream below the open directory ``directory``, never outside of it.

    An existing directory is kept, a file replaces a file, neither ever the other.  The entry
    ``.`` of a directory is the directory itself and changes nothing.  With ``owners`` files get
    their owners and all that goes with them; without, they belong to the caller, set-user-ID bits
    and capabilities are dropped, and devices are refused.
    """
    receiver = _Receiver(reader, directory, owners)
    for entry in reader:
        changed = change(entry)
        try:
            receiver.take(changed)
        except OSError as error:
            if is_full(error):
                raise no_space(f"/proc/self/fd/{directory}") from None
            text = f"cannot make {changed.name!r:.300}: {error.strerror}"
            raise HostError(text) from None
    receiver.leave("")


class _Receiver:
    def __init__(self, reader: StreamReader, directory: int, owners: bool) -> None:
        self._reader = reader
        self._root = directory
        self._owners = owners
        #: Directories around the last entry: nothing is known to be complete but what is not here.
        self._open: list[tuple[str, int]] = []

    def take(self, entry: Entry) -> None:
        if not fs.is_name(entry.name):
            raise VmmError(f"{entry.name!r:.300} has no place on this host")
        if entry.name == ".":
            if entry.type != fs.DIRECTORY:
                raise VmmError("a file has no place without a name")
            return
        self.leave(entry.name)
        above, _, name = entry.name.rpartition("/")
        parent = self._parent(above)
        try:
            self._make(entry, parent, name)
        finally:
            os.close(parent)

    def leave(self, name: str) -> None:
        """Set the times of the directories that ``name`` is not in."""
        while self._open and not name.startswith(self._open[-1][0] + "/"):
            path, when = self._open.pop()
            with contextlib.suppress(OSError):
                fd = open_exactly(self._root, path)
                try:
                    os.utime(fd, ns=(when, when))
                finally:
                    os.close(fd)

    def _parent(self, path: str) -> int:
        try:
            return open_exactly(self._root, path)
        except FileNotFoundError:
            pass
        fd = open_exactly(self._root, "")
        for part in path.split("/"):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
                below = os.open(part, DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _make(self, entry: Entry, parent: int, name: str) -> None:
        if entry.type == fs.DIRECTORY:
            self._directory(entry, parent, name)
        elif entry.type == fs.FILE:
            self._file(entry, parent, name)
        elif entry.type == fs.HARD_LINK:
            self._hard_link(entry, parent, name)
        else:
            self._special(entry, parent, name)

    def _directory(self, entry: Entry, parent: int, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise VmmError(
                    f"cannot replace the file {entry.name!r:.300} with a directory"
                ) from None
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            self._dress(entry, fd)
        finally:
            os.close(fd)
        self._open.append((entry.name, entry.mtime))

    def _file(self, entry: Entry, parent: int, name: str) -> None:
        _clear(entry, parent, name)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            self._write(fd, entry.size)
            self._dress(entry, fd)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        except BaseException:
            os.unlink(name, dir_fd=parent)  # no half of a file
            raise
        finally:
            os.close(fd)

    def _write(self, fd: int, size: int) -> None:
        """The content in whole blocks, of which those of zeroes alone stay holes."""
        at = 0
        pending = b""
        while data := self._reader.read(fs.CHUNK):
            pending += data
            whole = len(pending) - len(pending) % _BLOCK
            _write_sparse(fd, pending[:whole], at)
            at, pending = at + whole, pending[whole:]
        _write_sparse(fd, pending, at)
        os.ftruncate(fd, size)

    def _dress(self, entry: Entry, fd: int) -> None:
        """The owner first: it clears set-user-ID bits and file capabilities (chown(2))."""
        if self._owners:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & (0o7777 if self._owners else 0o1777))
        for key, value in entry.xattrs:
            if self._owners or key.startswith("user."):
                _set_xattr(fd, key, value)

    def _hard_link(self, entry: Entry, parent: int, name: str) -> None:
        if not fs.is_name(entry.link) or entry.link == ".":
            raise VmmError(f"{entry.name!r:.300} is a hard link that leads out")
        above, _, leaf = entry.link.rpartition("/")
        source = open_exactly(self._root, above)
        try:
            there = os.stat(leaf, dir_fd=source, follow_symlinks=False)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(there, os.stat(name, dir_fd=parent, follow_symlinks=False)):
                    return
            _clear(entry, parent, name)
            os.link(leaf, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _special(self, entry: Entry, parent: int, name: str) -> None:
        device = entry.type in (fs.CHARACTER, fs.BLOCK_DEVICE)
        if device and not self._owners:
            raise VmmError(
                f"{entry.name!r:.300} is a device of the workload's, not copied to this host",
                "copy it with its owners (-a), or into an archive",
            )
        _clear(entry, parent, name)
        if entry.type == fs.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            _mknod(entry, parent, name)
        if self._owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _mknod(entry: Entry, parent: int, name: str) -> None:
    """With its mode at once: by its name it could be another file later."""
    kind = {fs.CHARACTER: stat.S_IFCHR, fs.BLOCK_DEVICE: stat.S_IFBLK}.get(entry.type, stat.S_IFIFO)
    before = os.umask(0)
    try:
        os.mknod(name, kind | entry.mode & 0o777, entry.rdev, dir_fd=parent)
    finally:
        os.umask(before)


def _clear(entry: Entry, parent: int, name: str) -> None:
    """Take away the file in the way of one."""
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            raise VmmError(f"cannot replace the directory {entry.name!r:.300} with a file")
        os.unlink(name, dir_fd=parent)


def _write_sparse(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    start = 0
    for block in range(0, len(data) + _BLOCK, _BLOCK):
        part = view[block : block + _BLOCK]
        if part and part != _ZEROES[: len(part)]:
            continue
        _write_at(fd, view[start:block], at + start)
        start = block + _BLOCK


def _write_at(fd: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def _set_xattr(fd: int, key: str, value: bytes) -> None:
    if key.startswith(FOREIGN):
        raise VmmError(f"extended attribute {key!r:.80} is overlayfs's or the host's own")
    try:
        os.setxattr(fd, key, value)
    except OSError as error:
        # What the file system has no place for, as tar(1) does; never what a program may do.
        if error.errno not in (errno.ENOTSUP, errno.EPERM) or key == "security.capability":
            raise
