"""Copying files between two roots by descriptor: no path, link or race leads outside either."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

import msgspec

from vmm.model.errors import VmmError
from vmm.ports.kernel import openat2
from vmm.storage.tree import DIRECTORY, open_exactly, open_inside, remove_entry

_MAX_LINKS = 40
_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CAPABILITY = "security.capability"


class Owner(msgspec.Struct, frozen=True):
    uid: int
    gid: int


class Item(msgspec.Struct, frozen=True):
    """One file of a walk: ``parent`` is its directory's descriptor, open during the step."""

    path: str
    name: str
    parent: int
    status: os.stat_result


def lstat(root: int, path: str) -> os.stat_result:
    """Status of ``path`` inside ``root``, links on the way followed inside, the last one not."""
    fd = openat2(root, path or ".", os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def canonical(root: int, path: str) -> str:
    """``path`` inside ``root`` without links, ``.`` and ``..``; what is missing is kept.

    "" is the root itself.  A dangling link leads to where it points, as for FollowSymlinkInScope.
    """
    todo = path.split("/")[::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            del done[-1:]
        if part in ("", ".", ".."):
            continue
        target = _link_target(root, "/".join([*done, part]))
        if target is None:
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        todo += target.split("/")[::-1]
    return "/".join(done)


def _link_target(root: int, path: str) -> str | None:
    """Where the symbolic link ``path`` points; None if it is none or missing."""
    try:
        fd = openat2(root, path, os.O_PATH | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return None
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def make_directories(root: int, path: str, owner: Owner | None = None) -> int:
    """Descriptor of the directory ``path`` (canonical) in ``root``; missing ones are made 0755."""
    with contextlib.suppress(FileNotFoundError):
        return open_exactly(root, path)
    current = os.open(".", DIRECTORY, dir_fd=root)
    for part in path.split("/"):
        try:
            made = _make_directory(current, part, owner)
        finally:
            os.close(current)
        current = made
    return current


def _make_directory(parent: int, name: str, owner: Owner | None) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        os.fchmod(fd, 0o755)
        if owner:
            os.fchown(fd, owner.uid, owner.gid)
        return fd
    return os.open(name, DIRECTORY, dir_fd=parent)


Keep = Callable[[str], bool]


def walk(
    root: int,
    base: str,
    keep: Keep | None = None,
    descend: Keep | None = None,
    depth: int = -1,
) -> Iterator[Item]:
    """The files below the directory ``base`` (canonical), a directory before its content.

    ``keep`` and ``descend`` get the path from ``root``; a directory that is not kept is
    entered only if ``descend`` says so.  ``Item.path`` is relative to ``base``; with ``depth``
    its slashes are at most so many.
    """
    pending = [""]
    while pending:
        directory = pending.pop()
        parent = open_exactly(root, "/".join(filter(None, (base, directory))))
        try:
            below = []
            for name in sorted(os.listdir(parent), key=os.fsencode):
                path = f"{directory}/{name}" if directory else name
                full = f"{base}/{path}" if base else path
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                kept = keep is None or keep(full)
                if kept and not stat.S_ISSOCK(status.st_mode):
                    yield Item(path, name, parent, status)
                is_directory = stat.S_ISDIR(status.st_mode)
                deeper = depth < 0 or path.count("/") < depth
                if is_directory and deeper and (kept or (descend is not None and descend(full))):
                    below.append(path)
            pending += below[::-1]
        finally:
            os.close(parent)


def open_file(parent: int, name: str) -> int:
    """A regular file for reading; anything else that got into its place is refused."""
    fd = os.open(name, _READ, dir_fd=parent)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise VmmError(f"{name} changed while it was read", "keep the build context still")


class Writer:
    """Puts files into the directory ``base`` of a root, each as a tar extraction would."""

    def __init__(self, base: int, owner: Owner | None, mode: int | None) -> None:
        self._base = base
        self._owner = owner
        self._mode = mode
        self._times: list[tuple[str, os.stat_result]] = []
        self._parent: tuple[str, int] | None = None

    def close(self) -> None:
        """Set the directories' times, now that their content is there."""
        self._forget()
        for path, status in reversed(self._times):
            with contextlib.suppress(OSError):
                fd = open_exactly(self._base, path)
                try:
                    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                finally:
                    os.close(fd)

    def put(self, item: Item, path: str) -> None:
        """Copy ``item`` to ``path`` below the base, replacing what is not a directory too."""
        directory, _, name = path.rpartition("/")
        parent = self._open_parent(directory)
        is_directory = stat.S_ISDIR(item.status.st_mode)
        if not _keep_existing(parent, name, is_directory):
            self._forget_below(path)
            _create(item, parent, name)
        self._dress(item, parent, name)
        if is_directory:
            self._times.append((path, item.status))

    def _open_parent(self, directory: str) -> int:
        if self._parent and self._parent[0] == directory:
            return self._parent[1]
        self._forget()
        try:
            fd = open_inside(self._base, directory)
        except FileNotFoundError:
            fd = make_directories(self._base, canonical(self._base, directory))
        self._parent = (directory, fd)
        return fd

    def _forget(self) -> None:
        if self._parent:
            os.close(self._parent[1])
        self._parent = None

    def _forget_below(self, path: str) -> None:
        self._times = [entry for entry in self._times if not entry[0].startswith(path + "/")]

    def _dress(self, item: Item, parent: int, name: str) -> None:
        status = item.status
        owner = self._owner or Owner(status.st_uid, status.st_gid)
        os.chown(name, owner.uid, owner.gid, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            _set_times(status, parent, name)
            return
        mode = stat.S_IMODE(status.st_mode) if self._mode is None else self._mode
        os.chmod(name, mode, dir_fd=parent)
        if stat.S_ISREG(status.st_mode):
            _copy_capability(item, parent, name)
        if not stat.S_ISDIR(status.st_mode):
            _set_times(status, parent, name)


def _set_times(status: os.stat_result, parent: int, name: str) -> None:
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)


def _keep_existing(parent: int, name: str, directory: bool) -> bool:
    """Whether a directory meets a directory; anything else in the way is removed."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if directory and stat.S_ISDIR(status.st_mode):
        return True
    remove_entry(parent, name)
    return False


def _create(item: Item, parent: int, name: str) -> None:
    mode = item.status.st_mode
    if stat.S_ISREG(mode):
        _copy_content(item, parent, name)
    elif stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=parent)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(item.name, dir_fd=item.parent), name, dir_fd=parent)
    else:
        os.mknod(name, stat.S_IFMT(mode) | 0o600, item.status.st_rdev, dir_fd=parent)


def _copy_content(item: Item, parent: int, name: str) -> None:
    source = open_file(item.parent, item.name)
    try:
        target = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            while chunk := os.read(source, _CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(target, view) :]
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_capability(item: Item, parent: int, name: str) -> None:
    """File capabilities survive a copy, as in Docker; other attributes do not."""
    source = open_file(item.parent, item.name)
    try:
        value = os.getxattr(source, _CAPABILITY)
    except OSError:
        return
    finally:
        os.close(source)
    target = os.open(name, _READ, dir_fd=parent)
    try:
        os.setxattr(target, _CAPABILITY, value)
    finally:
        os.close(target)
