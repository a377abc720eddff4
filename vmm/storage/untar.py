"""Unpacking a tar archive that may be hostile below a directory it cannot leave.

Every name is resolved with openat2(2) RESOLVE_IN_ROOT against the root's descriptor and its
last component is never followed, so that ``..``, absolute names, and links made by the archive
or found on disk all end inside.  Whiteouts are those of image-spec, layer.md, "Whiteouts".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import IO, Literal, NamedTuple

from vmm.model.errors import HostError, VmmError
from vmm.ports.space import is_full
from vmm.storage import tarstream
from vmm.storage.tarstream import CHUNK, ArchiveError, Member, TarReader
from vmm.storage.tree import DIRECTORY, open_inside, remove_entry

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
#: overlayfs's own marks (Documentation/filesystems/overlayfs.rst).
OVERLAY_OPAQUE = "trusted.overlay.opaque"
_RESERVED_XATTRS = ("trusted.overlay.", "user.overlay.")
_MAX_XATTR_NAME = 255  # XATTR_NAME_MAX, xattr(7)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PARENTS = 64
_MAX_DIRECTORY_NAMES = 64 << 20


class Limits(NamedTuple):
    """What one archive may unpack to; ``archive`` bounds its own bytes."""

    content: int = 64 << 30
    entries: int = 1_000_000
    archive: int = 80 << 30


class Unpacked(NamedTuple):
    """``size`` is the bytes of file content; digest and length are of the archive itself."""

    size: int
    entries: int
    digest: str
    length: int


def extract(
    stream: IO[bytes],
    root: int,
    *,
    base: str = "",
    whiteouts: Literal["overlay", "literal"] = "literal",
    limits: Limits | None = None,
    digest: bool = False,
) -> Unpacked:
    """Unpack the uncompressed tar ``stream`` into ``base`` (which exists) inside ``root``.

    ``root`` is a readable descriptor of a directory.  An existing file is replaced, an existing
    directory kept; missing parents are made root's, mode 0755.  ``whiteouts="overlay"`` turns
    whiteouts into overlayfs's form; ``"literal"`` unpacks them as the files they are.
    Raises ArchiveError (what was unpacked so far stays: the caller discards it).
    """
    limits = limits or Limits()
    reader = TarReader(stream, limit=limits.archive, digest=digest)
    extractor = _Extractor(reader, root, base.strip("/"), whiteouts == "overlay", limits)
    with contextlib.closing(extractor):
        for member in reader:
            extractor.unpack(member)
        extractor.finish_directories()
    found, length = reader.drain()
    return Unpacked(extractor.size, extractor.entries, found if digest else "", length)


class _Extractor:
    def __init__(
        self, reader: TarReader, root: int, base: str, overlay: bool, limits: Limits
    ) -> None:
        self._reader = reader
        self._root = root
        self._base = base
        self._overlay = overlay
        self._limits = limits
        self._parents: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._name_bytes = 0
        self.size = 0
        self.entries = 0

    def close(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    def unpack(self, member: Member) -> None:
        self._count()
        try:
            self._place(member)
        except OSError as error:
            if is_full(error):
                raise
            raise _explained(error, member.name) from None

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limits.entries:
            raise ArchiveError(f"more than {self._limits.entries} entries and directories")

    def finish_directories(self) -> None:
        """Set the directories' times, now that nothing more is written into them."""
        for path, when in self._times.items():
            with contextlib.suppress(OSError):
                fd = open_inside(self._root, path)
                try:
                    os.utime(fd, ns=(when, when))
                finally:
                    os.close(fd)

    def _place(self, member: Member) -> None:
        path = self._inside(member.name)
        directory, _, name = path.rpartition("/")
        if path == self._base:
            if member.type == tarstream.DIRECTORY:
                fd = open_inside(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
                self._dress_directory(member, path, fd)
            return
        if self._overlay and WHITEOUT in path and self._whiteout(directory, name, path):
            return
        self._make(member, self._parent(directory), name, path)

    def _make(self, member: Member, parent: int, name: str, path: str) -> None:
        if member.type == tarstream.DIRECTORY:
            self._directory(member, parent, name, path)
        elif member.type == tarstream.REGULAR:
            self._file(member, parent, name)
        elif member.type == tarstream.HARD_LINK:
            self._hard_link(member, parent, name, path)
        else:
            self._special(member, parent, name)

    def _inside(self, raw: bytes) -> str:
        """The path below the root, without ``.`` and ``..``; leaving the base is refused."""
        parts: list[str] = []
        for part in os.fsdecode(raw).split("/"):
            if part == "..":
                if not parts:
                    raise ArchiveError(f"entry {raw[:200]!r} is outside of the archive's root")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        if self._base:
            parts.insert(0, self._base)
        return "/".join(parts)

    def _parent(self, directory: str) -> int:
        fd = self._parents.get(directory)
        if fd is None:
            fd = self._open_parent(directory)
            if len(self._parents) >= _OPEN_PARENTS:
                os.close(self._parents.pop(next(iter(self._parents))))
            self._parents[directory] = fd
        return fd

    def _open_parent(self, directory: str) -> int:
        """Open a directory inside the root; what is missing of its path is made."""
        try:
            return self._open_directory(directory)
        except FileNotFoundError:
            pass
        parts = directory.split("/")
        present, missing = 0, len(parts)
        while missing - present > 1:  # how much of the path exists
            middle = (present + missing) // 2
            try:
                os.close(self._open_directory("/".join(parts[:middle])))
                present = middle
            except FileNotFoundError:
                missing = middle
        fd = self._open_directory("/".join(parts[:present]))
        for part in parts[present:]:
            self._count()
            fd = _make_below(fd, part)
        return fd

    def _open_directory(self, path: str) -> int:
        return open_inside(self._root, path, os.O_RDONLY | os.O_DIRECTORY)

    def _forget_parents(self) -> None:
        """What a path means may have changed with what was removed."""
        self.close()

    def _replace(self, parent: int, name: str) -> int:
        """Remove what is in the way; the parent's descriptor stays usable."""
        keep = os.dup(parent)
        try:
            self._forget_parents()
            remove_entry(keep, name)
        except BaseException:
            os.close(keep)
            raise
        self._parents["//"] = keep
        return keep

    def _directory(self, member: Member, parent: int, name: str, path: str) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                opaque = self._overlay and is_whiteout(status)
                parent = self._replace(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        if opaque:
            os.setxattr(fd, OVERLAY_OPAQUE, b"y")
        self._dress_directory(member, path, fd)

    def _dress_directory(self, member: Member, path: str, fd: int) -> None:
        try:
            self._dress(member, fd)
        finally:
            os.close(fd)
        if path not in self._times:
            self._name_bytes += len(path) + 64
            if self._name_bytes > _MAX_DIRECTORY_NAMES:
                raise ArchiveError("too many directories")
        self._times[path] = member.mtime

    def _dress(self, member: Member, fd: int) -> None:
        """Owner first: it clears set-user-ID bits and file capabilities (chown(2))."""
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode)
        for key, value in member.xattrs.items():
            _set_xattr(fd, key, value)

    def _file(self, member: Member, parent: int, name: str) -> None:
        self.size += member.size
        if self.size > self._limits.content:
            raise ArchiveError(f"it unpacks to more than {self._limits.content} bytes")
        try:
            fd = os.open(name, _WRITE, 0o600, dir_fd=parent)
        except FileExistsError:
            fd = os.open(name, _WRITE, 0o600, dir_fd=self._replace(parent, name))
        try:
            if member.segments is not None:
                self._write_segments(member, fd)
            else:
                self._write(fd, member.size)
            self._dress(member, fd)
            os.utime(fd, ns=(member.mtime, member.mtime))
        finally:
            os.close(fd)

    def _write(self, fd: int, size: int) -> None:
        while size:
            data = memoryview(self._reader.read(min(size, CHUNK)))
            size -= len(data)
            while data:
                data = data[os.write(fd, data) :]

    def _write_segments(self, member: Member, fd: int) -> None:
        for offset, length in member.segments or ():
            os.lseek(fd, offset, os.SEEK_SET)
            self._write(fd, length)
        os.ftruncate(fd, member.size)

    def _hard_link(self, member: Member, parent: int, name: str, path: str) -> None:
        target = self._inside(member.link)
        if target in (path, self._base):
            raise ArchiveError(f"entry {member.name[:200]!r} is a hard link to itself or its root")
        above, _, leaf = target.rpartition("/")
        source = open_inside(self._root, above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                _link(source, leaf, parent, name)
            except FileExistsError:
                os.stat(leaf, dir_fd=source, follow_symlinks=False)
                _link(source, leaf, self._replace(parent, name), name)
        finally:
            os.close(source)

    def _special(self, member: Member, parent: int, name: str) -> None:
        try:
            _make_special(member, parent, name)
        except FileExistsError:
            parent = self._replace(parent, name)
            _make_special(member, parent, name)
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        where = f"/proc/self/fd/{parent}/{name}"
        if member.type != tarstream.SYMLINK:
            # Just made by us in a directory nobody else writes to: no link can be here.
            os.chmod(where, member.mode)
        for key, value in member.xattrs.items():
            _set_xattr(where, key, value)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=parent, follow_symlinks=False)

    def _whiteout(self, directory: str, name: str, path: str) -> bool:
        """Carry out a whiteout entry; False for an entry that is none."""
        if any(part.startswith(WHITEOUT) for part in directory.split("/")):
            if "/.wh..wh." in f"/{directory}":  # aufs's bookkeeping
                return True
            raise ArchiveError(f"entry {path!r:.200} is below a whiteout")
        if not name.startswith(WHITEOUT):
            return False
        if name == OPAQUE:
            os.setxattr(self._parent(directory), OVERLAY_OPAQUE, b"y")
            return True
        if name.startswith(WHITEOUT + WHITEOUT):
            return True
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise ArchiveError(f"entry {path!r:.200} is a whiteout of nothing or of a parent")
        self._hide(self._parent(directory), hidden)
        return True

    def _hide(self, parent: int, name: str) -> None:
        """A whiteout hides lower layers only: what this layer brings itself stays."""
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                fd = os.open(name, DIRECTORY, dir_fd=parent)
                try:
                    os.setxattr(fd, OVERLAY_OPAQUE, b"y")
                finally:
                    os.close(fd)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark of a removed file: character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _make_below(parent: int, name: str) -> int:
    """Make and open a directory; closes ``parent``."""
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
        made = os.open(name, DIRECTORY, dir_fd=parent)
    finally:
        os.close(parent)
    os.fchmod(made, 0o755)  # whatever the umask
    return made


def _link(source: int, leaf: str, parent: int, name: str) -> None:
    os.link(leaf, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)


def _make_special(member: Member, parent: int, name: str) -> None:
    if member.type == tarstream.SYMLINK:
        os.symlink(os.fsdecode(member.link), name, dir_fd=parent)
    elif member.type == tarstream.FIFO:
        os.mknod(name, stat.S_IFIFO | 0o600, 0, dir_fd=parent)
    else:
        character = member.type == tarstream.CHARACTER
        if not 0 <= member.major < 1 << 12 or not 0 <= member.minor < 1 << 20:
            raise ArchiveError(f"entry {member.name[:200]!r}: device number out of range")
        if character and member.major == member.minor == 0:
            raise ArchiveError(f"entry {member.name[:200]!r}: device 0:0 is overlayfs's own mark")
        kind = stat.S_IFCHR if character else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(member.major, member.minor), dir_fd=parent)


def _set_xattr(where: int | str, key: bytes, value: bytes) -> None:
    name = os.fsdecode(key)
    if b"\0" in key or len(key) > _MAX_XATTR_NAME:
        raise ArchiveError(f"extended attribute {name!r:.80}: no such name can exist")
    if name.startswith(_RESERVED_XATTRS):
        raise ArchiveError(f"extended attribute {name!r:.80} is overlayfs's own")
    try:
        if isinstance(where, int):
            os.setxattr(where, name, value)
        else:
            os.setxattr(where, name, value, follow_symlinks=False)
    except OSError as error:
        # What the file system or the host's security module has no place for, as tar(1) does.
        if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == "security.capability":
            raise


def _explained(error: OSError, name: bytes) -> VmmError:
    if error.errno in (errno.EIO, errno.EROFS, errno.EMFILE):
        return HostError(f"unpacking {name[:200]!r}: {error.strerror}")
    return ArchiveError(f"entry {name[:200]!r}: {error.strerror}")
