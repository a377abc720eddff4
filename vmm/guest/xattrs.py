"""Extended attributes as EROFS keeps them behind an inode (fs/erofs/erofs_fs.h)."""

from __future__ import annotations

import errno
import os
import struct

from vmm.model.errors import VmmError

#: Prefix to index, the longest first.
_PREFIXES = (
    ("system.posix_acl_default", 3), ("system.posix_acl_access", 2), ("security.", 6),
    ("trusted.", 4), ("user.", 1),
)  # fmt: skip
#: Overlayfs's own notes are about its layers, not about the tree.
_OVERLAY = "trusted.overlay."
_HEADER = bytes(12)
_ENTRY = struct.Struct("<BBH")
#: What the 16 bits of an inode can count, in units of 4 bytes beside the header.
_MOST = 0xFFFE * 4


def packed_xattrs(path: str, shown: str) -> bytes:
    """Those of the file at ``path`` (a link itself), empty without any; ``shown`` is for errors."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return b""
        raise
    packed = bytearray()
    for name in sorted(names):
        index = next((i for prefix, i in _PREFIXES if name.startswith(prefix)), 0)
        if index and not name.startswith(_OVERLAY):
            packed += _packed(name, index, os.getxattr(path, name, follow_symlinks=False), shown)
    if len(packed) > _MOST:
        raise VmmError(f"{shown:.200}: {len(packed)} bytes of extended attributes are too many")
    return _HEADER + packed if packed else b""


def _packed(name: str, index: int, value: bytes, shown: str) -> bytes:
    prefix = next(prefix for prefix, i in _PREFIXES if i == index)
    rest = os.fsencode(name[len(prefix) :])
    if len(value) > 0xFFFF:
        raise VmmError(f"{shown:.200}: the extended attribute {name:.100} is too long")
    entry = _ENTRY.pack(len(rest), index, len(value)) + rest + value
    return entry + bytes(-len(entry) % 4)
