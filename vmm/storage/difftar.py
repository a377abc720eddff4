"""A directory as a layer's tar: deterministic, with OCI whiteouts for overlayfs's marks."""

from __future__ import annotations

import os
import stat
from typing import Protocol

from vmm.model.errors import CorruptStore, VmmError
from vmm.storage import tarheader
from vmm.storage.tarheader import Header
from vmm.storage.tarstream import BLOCK, CHUNK
from vmm.storage.tree import Entry, walk
from vmm.storage.untar import OPAQUE, OVERLAY_OPAQUE, WHITEOUT, is_whiteout

#: Attributes that belong to the file and not to this host.
_KEPT_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_REDIRECTS = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_FLAGS = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class Sink(Protocol):
    """Anything written to."""

    def write(self, data: bytes, /) -> object: ...


def diff_tar(root: int, out: Sink) -> int:
    """Write what is below the directory ``root`` as a tar; the bytes of its files' content.

    Sorted, numeric owners, times in seconds, sockets left out.  ``root`` may be an overlay's
    upper directory: its character devices 0:0 and opaque directories become whiteouts.
    """
    links: dict[tuple[int, int], bytes] = {}
    size = 0
    for entry in walk(root):
        status = entry.status
        if stat.S_ISSOCK(status.st_mode):
            continue
        if is_whiteout(status):
            directory, slash, name = entry.path.rpartition("/")
            out.write(_header(os.fsencode(directory + slash + WHITEOUT + name), b"0", 0))
            continue
        if entry.name.startswith(WHITEOUT):
            raise VmmError(
                f"/{entry.path}: a file name that begins with {WHITEOUT} has no place in a layer",
                "such names mean removed files in OCI images; rename the file",
            )
        size += _write(entry, out, links)
    out.write(bytes(2 * BLOCK))
    return size


def _write(entry: Entry, out: Sink, links: dict[tuple[int, int], bytes]) -> int:
    status = entry.status
    path = os.fsencode(entry.path)
    kind = stat.S_IFMT(status.st_mode)
    inode = (status.st_dev, status.st_ino)
    if kind != stat.S_IFDIR and status.st_nlink > 1:
        if inode in links:
            out.write(_header(path, b"1", 0, status, links[inode]))
            return 0
        links[inode] = path
    xattrs, opaque = _xattrs(entry)
    if kind == stat.S_IFREG:
        out.write(_header(path, b"0", status.st_size, status, xattrs=xattrs))
        _copy(entry, out)
        return status.st_size
    link = (
        os.fsencode(os.readlink(entry.name, dir_fd=entry.parent)) if kind == stat.S_IFLNK else b""
    )
    path += b"/" if kind == stat.S_IFDIR else b""
    out.write(_header(path, _FLAGS[kind], 0, status, link, xattrs))
    if opaque:
        out.write(_header(path + OPAQUE.encode(), b"0", 0))
    return 0


def _copy(entry: Entry, out: Sink) -> None:
    left = entry.status.st_size
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(entry.name, flags, dir_fd=entry.parent)
    try:
        while left:
            data = os.read(fd, min(left, CHUNK))
            if not data:
                raise CorruptStore(f"/{entry.path} shrank while it was read")
            out.write(data)
            left -= len(data)
    finally:
        os.close(fd)
    out.write(bytes(-entry.status.st_size % BLOCK))


def _xattrs(entry: Entry) -> tuple[dict[bytes, bytes], bool]:
    """The attributes to keep, and whether overlayfs marked the directory opaque."""
    where = f"/proc/self/fd/{entry.parent}/{entry.name}"
    kept: dict[bytes, bytes] = {}
    opaque = False
    for name in sorted(os.listxattr(where, follow_symlinks=False)):
        if name in _REDIRECTS:
            raise CorruptStore(
                f"/{entry.path} is only a reference to a lower layer ({name})",
                "mount overlays with redirect_dir=off,metacopy=off",
            )
        if name == OVERLAY_OPAQUE:
            opaque = os.getxattr(where, name, follow_symlinks=False) == b"y"
        elif name.startswith(_KEPT_XATTRS):
            kept[os.fsencode(name)] = os.getxattr(where, name, follow_symlinks=False)
    return kept, opaque


def _header(
    path: bytes,
    flag: bytes,
    size: int,
    status: os.stat_result | None = None,
    link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
) -> bytes:
    """A member's header; without a status that of a whiteout."""
    if status is None:
        return tarheader.encode(Header(path, flag, size))
    device = status.st_rdev if flag in b"34" else 0
    header = Header(
        path=path,
        flag=flag,
        size=size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=int(status.st_mtime),
        link=link,
        major=os.major(device),
        minor=os.minor(device),
    )
    return tarheader.encode(header, xattrs)
