"""Root images: a file tree as an uncompressed EROFS, written in one pass.

Layout: the superblock's block, the contents of files, the inodes.  Small files, links and the ends
of larger files lie behind their inodes.  Format: the kernel's ``fs/erofs/erofs_fs.h`` and
Documentation/filesystems/erofs.rst.  ``mkfs.erofs`` is no substitute: it resolves the path it is
given, so that it cannot read a detached mount, and it stores the holes of sparse files.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from vmm.guest.erofsdir import MAGIC, Dirent, directory_blocks, directory_size
from vmm.guest.xattrs import packed_xattrs
from vmm.model.errors import CorruptStore, VmmError
from vmm.storage.tree import Entry, walk

BLOCK = 4096
_SUPER_AT = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sI44x")
#: Times are mtimes; files by chunks exist.
_COMPAT_MTIME, _INCOMPAT_CHUNKED = 0x2, 0x4
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_NLINK_AT = 44
_SLOT = 32
#: i_format: an extended inode (bit 0) of this data layout.
_PLAIN, _INLINE, _CHUNKED = 1 | 0 << 1, 1 | 2 << 1, 1 | 4 << 1
_HOLE = 0xFFFFFFFF
_MAX_CHUNKS = 1 << 16
_MAX_CHUNK_BITS = 12 + 31
#: Read through Python's memory up to this; more goes from file to file inside the kernel.
_SMALL = 128 << 10
_PIECE = 8 << 20


class Written(NamedTuple):
    """Numbers of a finished image: files and directories, bytes of it."""

    inodes: int
    size: int


def write_image(root: int, image: int, scratch: Path | str) -> Written:
    """Write the tree of the directory descriptor ``root`` into the empty file ``image``.

    Needs memory for the names only, whatever the files hold, and room for all inodes and the ends
    of files in an unnamed file in the directory ``scratch``.  The caller syncs.
    """
    with tempfile.TemporaryFile(dir=scratch) as meta:
        return _Writer(image, meta.fileno()).write(root)


class _Directory:
    """A directory while its entries are collected; its inode comes last."""

    __slots__ = ("entries", "inline", "nid", "parent", "status", "subdirectories", "xattrs")

    def __init__(self, status: os.stat_result, xattrs: bytes, parent: _Directory | None) -> None:
        self.status = status
        self.xattrs = xattrs
        self.parent = parent or self
        #: Name, file type, and the nid or the directory that will have one.
        self.entries: list[tuple[bytes, int, int | _Directory]] = []
        self.subdirectories = 0
        self.nid = -1
        self.inline = False


def _write_at(fd: int, data: bytes, at: int) -> None:
    """All of it: on a disk that is nearly full a write may stop early (pwrite(2))."""
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


class _Writer:
    def __init__(self, image: int, meta: int) -> None:
        self._image, self._meta = image, meta
        #: Next free block of the image, next free byte of the inodes' area.
        self._block, self._at = 1, 0
        self._inodes = 0
        self._chunked = False
        #: By device and inode number: the nid and how many links were met.
        self._links: dict[tuple[int, int], list[int]] = {}

    def write(self, root: int) -> Written:
        top = _Directory(os.fstat(root), packed_xattrs(f"/proc/self/fd/{root}/.", "/"), None)
        top.nid = self._place(len(top.xattrs), 0) // _SLOT  # 16 bits in the superblock
        directories = [top, *self._files(root, top)]
        for directory in directories[1:]:
            xattrs = len(directory.xattrs)
            tail = directory_size(name for name, _, _ in directory.entries) % BLOCK
            directory.inline = self._fits(xattrs, tail)
            directory.nid = self._place(xattrs, tail if directory.inline else 0) // _SLOT
        for directory in directories:
            self._write_directory(directory)
        for nid, count in self._links.values():
            _write_at(self._meta, struct.pack("<I", count), nid * _SLOT + _NLINK_AT)
        return self._finish(top.nid)

    def _files(self, root: int, top: _Directory) -> list[_Directory]:
        """Write all that is no directory; the directories in the order they were met."""
        by_path = {"": top}
        for entry in walk(root):
            above = by_path[entry.path.rpartition("/")[0]]
            kind = _FILE_TYPES[stat.S_IFMT(entry.status.st_mode)]
            if kind == _DIRECTORY_TYPE:
                xattrs = packed_xattrs(f"/proc/self/fd/{entry.parent}/{entry.name}", entry.path)
                below = _Directory(entry.status, xattrs, above)
                by_path[entry.path] = below
                above.subdirectories += 1
                above.entries.append((os.fsencode(entry.name), kind, below))
            else:
                above.entries.append((os.fsencode(entry.name), kind, self._file(entry)))
        del by_path[""]
        return list(by_path.values())

    def _file(self, entry: Entry) -> int:
        """The nid of a file, whose inode is written with the first of its links."""
        status = entry.status
        if status.st_nlink == 1:
            return self._write_file(entry)
        key = (status.st_dev, status.st_ino)
        if key not in self._links:
            self._links[key] = [self._write_file(entry), 0]
        self._links[key][1] += 1
        return self._links[key][0]

    def _write_file(self, entry: Entry) -> int:
        status = entry.status
        xattrs = packed_xattrs(f"/proc/self/fd/{entry.parent}/{entry.name}", entry.path)
        if stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(entry.name, dir_fd=entry.parent))
            return self._small(status, xattrs, target)
        if not stat.S_ISREG(status.st_mode):
            return self._put(_PLAIN, status, xattrs, 0, _encoded_device(status.st_rdev))
        fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.parent)
        try:
            if status.st_size > BLOCK and status.st_blocks * 512 < status.st_size:
                return self._sparse(fd, status, xattrs, entry.path)
            if status.st_size <= _SMALL:
                return self._small(status, xattrs, _read(fd, status.st_size, entry.path))
            return self._large(fd, status, xattrs, entry.path)
        finally:
            os.close(fd)

    def _small(self, status: os.stat_result, xattrs: bytes, content: bytes) -> int:
        whole = len(content) // BLOCK * BLOCK
        tail = content[whole:]
        if not self._fits(len(xattrs), len(tail)):
            whole, tail = len(content), b""
        first = self._take(whole)
        if whole:
            _write_at(self._image, content[:whole], first * BLOCK)
        layout = _INLINE if tail else _PLAIN
        return self._put(layout, status, xattrs, len(content), first, tail)

    def _large(self, fd: int, status: os.stat_result, xattrs: bytes, path: str) -> int:
        first = self._take(status.st_size)
        _transfer(self._image, first * BLOCK, fd, 0, status.st_size, path)
        return self._put(_PLAIN, status, xattrs, status.st_size, first)

    def _sparse(self, fd: int, status: os.stat_result, xattrs: bytes, path: str) -> int:
        """A file by chunks: a table of block addresses, where holes have none."""
        size, bits = status.st_size, 12
        while size > _MAX_CHUNKS << bits:
            bits += 1
        if bits > _MAX_CHUNK_BITS:
            raise VmmError(f"/{path:.200}: {size} bytes are too many for a root image")
        table = [_HOLE] * -(-size // (1 << bits))
        for start, end in _data(fd, size):
            at = start
            while at < end:
                chunk = at >> bits
                stop = min(end, (chunk + 1) << bits)
                if table[chunk] == _HOLE:
                    table[chunk] = self._take(min(size - (chunk << bits), 1 << bits))
                place = table[chunk] * BLOCK + at - (chunk << bits)
                _transfer(self._image, place, fd, at, stop - at, path)
                at = stop
        self._chunked = True
        packed = struct.pack(f"<{len(table)}I", *table)
        return self._put(_CHUNKED, status, xattrs, size, bits - 12, packed, spread=True)

    def _take(self, size: int) -> int:
        """The first of enough blocks for ``size`` bytes."""
        first = self._block
        self._block += -(-size // BLOCK)
        if self._block >= _HOLE:
            raise VmmError("the image is too large: a root image holds at most 16 TiB")
        return first

    def _fits(self, xattrs: int, tail: int) -> bool:
        """Whether ``tail`` bytes behind an inode waste less than a block of their own does."""
        room = BLOCK - self._at % BLOCK
        size = _INODE.size + xattrs
        return tail > 0 and (size + tail <= room or (size + tail <= BLOCK and room < BLOCK - tail))

    def _place(self, xattrs: int, tail: int) -> int:
        """Where an inode goes whose ``tail`` must not cross the end of a block."""
        size = _INODE.size + xattrs
        room = BLOCK - self._at % BLOCK
        if room < _INODE.size or (tail and size + tail > room):
            self._at += room
        place = self._at
        self._at += -(-(size + tail) // _SLOT) * _SLOT
        self._inodes += 1
        return place

    def _put(
        self, layout: int, status: os.stat_result, xattrs: bytes, size: int, where: int,
        tail: bytes = b"", *, spread: bool = False,
    ) -> int:  # fmt: skip
        """Append an inode; its nid. ``spread``: what follows it may cross blocks."""
        place = self._place(len(xattrs) + (len(tail) if spread else 0), 0 if spread else len(tail))
        inode = self._inode(layout, status, xattrs, size, where, 1, place)
        _write_at(self._meta, inode + xattrs + tail, place)
        return place // _SLOT

    def _inode(
        self, layout: int, status: os.stat_result, xattrs: bytes, size: int, where: int,
        links: int, place: int,
    ) -> bytes:  # fmt: skip
        count = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        return _INODE.pack(
            layout, count, status.st_mode, 0, size, where, place // _SLOT & _HOLE, status.st_uid,
            status.st_gid, seconds & (1 << 64) - 1, nanoseconds, links,
        )  # fmt: skip

    def _write_directory(self, directory: _Directory) -> None:
        entries = [Dirent(b".", _DIRECTORY_TYPE, directory.nid)]
        entries.append(Dirent(b"..", _DIRECTORY_TYPE, directory.parent.nid))
        for name, kind, node in directory.entries:
            entries.append(Dirent(name, kind, node.nid if isinstance(node, _Directory) else node))
        content = directory_blocks(entries)
        whole = len(content) // BLOCK * BLOCK if directory.inline else len(content)
        first = self._take(whole)
        _write_at(self._image, content[:whole], first * BLOCK)
        layout = _INLINE if content[whole:] else _PLAIN
        place, links = directory.nid * _SLOT, 2 + directory.subdirectories
        inode = self._inode(
            layout, directory.status, directory.xattrs, len(content), first, links, place
        )
        _write_at(self._meta, inode + directory.xattrs + content[whole:], place)

    def _finish(self, root_nid: int) -> Written:
        start = self._take(self._at)
        os.ftruncate(self._meta, self._at)
        _transfer(self._image, start * BLOCK, self._meta, 0, self._at, "")
        os.ftruncate(self._image, self._block * BLOCK)
        incompat = _INCOMPAT_CHUNKED if self._chunked else 0
        block = _SUPER.pack(
            MAGIC, 0, _COMPAT_MTIME, 12, 0, root_nid, self._inodes, 0, 0, self._block, start, 0,
            bytes(16), b"vmm-root", incompat,
        )  # fmt: skip
        _write_at(self._image, block, _SUPER_AT)
        return Written(self._inodes, self._block * BLOCK)


_DIRECTORY_TYPE = 2
_FILE_TYPES = {
    stat.S_IFREG: 1, stat.S_IFDIR: _DIRECTORY_TYPE, stat.S_IFCHR: 3, stat.S_IFBLK: 4,
    stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7,
}  # fmt: skip


def _encoded_device(device: int) -> int:
    """A device number as inodes keep it (linux/kdev_t.h, new_encode_dev())."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _read(fd: int, size: int, path: str) -> bytes:
    content = os.read(fd, size) if size else b""
    while len(content) < size:
        more = os.read(fd, size - len(content))
        if not more:
            raise _shrank(path)
        content += more
    return content


def _transfer(target: int, place: int, source: int, offset: int, count: int, path: str) -> None:
    """Copy a stretch of a file without its bytes passing through this process."""
    os.lseek(target, place, os.SEEK_SET)
    while count:
        done = os.sendfile(target, source, offset, min(count, _PIECE))
        if not done:
            raise _shrank(path)
        offset += done
        count -= done


def _data(fd: int, size: int) -> list[tuple[int, int]]:
    """The stretches of a sparse file that are no holes (lseek(2), SEEK_DATA)."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, at))
    return found


def _shrank(path: str) -> CorruptStore:
    return CorruptStore(f"/{path:.200}: the file became shorter while it was read")
