"""A directory as a layer's tar: deterministic, with OCI whiteouts for overlayfs's marks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Protocol

from vmm.model.errors import CorruptStore, VmmError
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
_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL = 0o77777777777


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
    """A member's header, with a PAX header before it where ustar has no room."""
    mode, uid, gid, mtime, major, minor = 0o600, 0, 0, 0, 0, 0
    if status is not None:
        mode, uid, gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        mtime = int(status.st_mtime)
        if flag in b"34":
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    records = {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
    records |= dict(_too_big(path, link, size, uid, gid, mtime))
    block = _block(path, flag, size, mode, uid, gid, mtime, link, major, minor)
    if not records:
        return block
    data = b"".join(_record(key, value) for key, value in sorted(records.items()))
    name = b"PaxHeaders/" + path.rstrip(b"/").rpartition(b"/")[2][:80]
    extended = _block(name, b"x", len(data), 0o644, 0, 0, 0, b"", 0, 0)
    return extended + data + bytes(-len(data) % BLOCK) + block


def _too_big(
    path: bytes, link: bytes, size: int, uid: int, gid: int, mtime: int
) -> Iterator[tuple[bytes, bytes]]:
    for key, text in ((b"path", path), (b"linkpath", link)):
        if len(text) > 100:
            yield key, text
    for key, value, most in (
        (b"size", size, _MAX_OCTAL),
        (b"uid", uid, _MAX_OCTAL_ID),
        (b"gid", gid, _MAX_OCTAL_ID),
        (b"mtime", mtime, _MAX_OCTAL),
    ):
        if not 0 <= value <= most:
            yield key, b"%d" % value


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value`` and a newline; the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _octal(value: int, width: int) -> bytes:
    most = (1 << (3 * (width - 1))) - 1
    return b"%0*o\0" % (width - 1, value if 0 <= value <= most else 0)


def _block(
    path: bytes,
    flag: bytes,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    link: bytes,
    major: int,
    minor: int,
) -> bytes:
    block = bytearray(BLOCK)
    block[0:100] = path[:100].ljust(100, b"\0")
    block[100:136] = _octal(mode, 8) + _octal(uid, 8) + _octal(gid, 8) + _octal(size, 12)
    block[136:148] = _octal(mtime, 12)
    block[148:157] = b"        " + flag
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[329:345] = _octal(major, 8) + _octal(minor, 8)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
