"""A file or tree of the host as a file stream, by descriptor and without following links."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator

from vmm.model import filestream as fs
from vmm.model.errors import VmmError
from vmm.model.filestream import Entry, StreamWriter, unchanged
from vmm.storage.tree import Entry as Found
from vmm.storage.tree import open_exactly

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: Attributes that belong to a host and not to a file.
FOREIGN = ("trusted.overlay.", "user.overlay.", "security.selinux")
_KINDS = {
    stat.S_IFREG: fs.FILE,
    stat.S_IFDIR: fs.DIRECTORY,
    stat.S_IFLNK: fs.SYMLINK,
    stat.S_IFCHR: fs.CHARACTER,
    stat.S_IFBLK: fs.BLOCK_DEVICE,
    stat.S_IFIFO: fs.FIFO,
}


def tree_to_stream(
    path: str,
    writer: StreamWriter,
    *,
    follow: bool = False,
    change: Callable[[Entry], Entry] = unchanged,
) -> None:
    """Write the file or tree ``path`` as a stream, its end included; sockets are left out.

    ``path`` is the user's own and resolved as usual; ``follow`` follows a link at its end.
    Below it no link is followed.  OSError as the files give.
    """
    status = os.stat(path, follow_symlinks=follow)
    if stat.S_ISSOCK(status.st_mode):
        raise VmmError(f"{path} is a socket, which cannot be copied")
    sender = _Sender(writer, change)
    if stat.S_ISDIR(status.st_mode):
        top = os.open(path, _READ | os.O_DIRECTORY)
        try:
            sender.tree(top)
        finally:
            os.close(top)
    else:
        sender.one(path, ".", None, status, 0 if follow else os.O_NOFOLLOW)
    writer.end()


def _depth_first(top: int) -> Iterator[Found]:
    """Every file below ``top``, sorted; what is in a directory follows it at once, so that its
    time can be set when its last file was made. One descriptor is open at a time."""
    pending = [("", _names(top, ""))]
    while pending:
        path, names = pending[-1]
        fd = open_exactly(top, path)
        try:
            below = yield from _files(fd, path, names)
        finally:
            os.close(fd)
        if below:
            pending.append((below, _names(top, below)))
        else:
            pending.pop()


def _names(top: int, path: str) -> list[str]:
    """The last one first."""
    fd = open_exactly(top, path)
    try:
        return sorted(os.listdir(fd), key=os.fsencode, reverse=True)
    finally:
        os.close(fd)


def _files(fd: int, path: str, names: list[str]) -> Generator[Found, None, str]:
    """Take from ``names`` until a directory was met, whose path is returned."""
    while names:
        name = names.pop()
        where = f"{path}/{name}" if path else name
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        yield Found(where, name, fd, status)
        if stat.S_ISDIR(status.st_mode):
            return where
    return ""


class _Sender:
    def __init__(self, writer: StreamWriter, change: Callable[[Entry], Entry]) -> None:
        self._writer = writer
        self._change = change
        self._links: dict[tuple[int, int], str] = {}

    def tree(self, top: int) -> None:
        self._send(_entry(".", os.fstat(top), _xattrs(top)))
        for found in _depth_first(top):
            if not stat.S_ISSOCK(found.status.st_mode):
                self.one(found.name, found.path, found.parent, found.status, os.O_NOFOLLOW)

    def one(
        self, where: str, name: str, parent: int | None, status: os.stat_result, last: int
    ) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and name != ".":
            first = self._links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                self._send(_entry(name, status)._replace(type=fs.HARD_LINK, size=0, link=first))
                return
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            fd = os.open(where, _READ | last, dir_fd=parent)
            try:
                self._opened(fd, name)
            finally:
                os.close(fd)
            return
        link = os.readlink(where, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else ""
        self._send(_entry(name, status)._replace(link=link))

    def _opened(self, fd: int, name: str) -> None:
        """What is open is what is sent, whatever the name stands for by now."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise VmmError(f"{name!r:.200} changed while it was copied", "copy again")
        entry = _entry(name, status, _xattrs(fd))
        self._send(entry)
        left = entry.size
        while left:
            data = os.read(fd, min(left, fs.CHUNK))
            if not data:
                self._writer.zeroes(left)
                break
            self._writer.content(data)
            left -= len(data)

    def _send(self, entry: Entry) -> None:
        self._writer.entry(self._change(entry))


def _entry(name: str, status: os.stat_result, xattrs: tuple[tuple[str, bytes], ...] = ()) -> Entry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    return Entry(
        name=name,
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == fs.FILE else 0,
        mtime=status.st_mtime_ns,
        rdev=status.st_rdev if kind in (fs.CHARACTER, fs.BLOCK_DEVICE) else 0,
        xattrs=xattrs,
    )


def _xattrs(fd: int) -> tuple[tuple[str, bytes], ...]:
    try:
        names = [name for name in os.listxattr(fd) if not name.startswith(FOREIGN)]
        return tuple((name, os.getxattr(fd, name)) for name in names)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
        return ()
