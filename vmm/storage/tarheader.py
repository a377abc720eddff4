"""Headers of tar archives: ustar, with a PAX header before it where ustar has no room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmm.storage.tarstream import BLOCK

_MAX_OCTAL_ID = 0o7777777
_MAX_OCTAL = 0o77777777777


class Header(NamedTuple):
    """What one header says; ``mtime`` in seconds, ``flag`` the type of POSIX.1-2017 pax."""

    path: bytes
    flag: bytes
    size: int = 0
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0


def encode(header: Header, xattrs: dict[bytes, bytes] | None = None) -> bytes:
    """The blocks of a member's header, extended attributes in the form of star(1)."""
    records = {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
    records |= dict(_too_big(header))
    block = _block(header)
    if not records:
        return block
    data = b"".join(_record(key, value) for key, value in sorted(records.items()))
    name = b"PaxHeaders/" + header.path.rstrip(b"/").rpartition(b"/")[2][:80]
    extended = _block(Header(name, b"x", len(data), 0o644))
    return extended + data + bytes(-len(data) % BLOCK) + block


def _too_big(header: Header) -> Iterator[tuple[bytes, bytes]]:
    for key, text in ((b"path", header.path), (b"linkpath", header.link)):
        if len(text) > 100:
            yield key, text
    for key, value, most in (
        (b"size", header.size, _MAX_OCTAL),
        (b"uid", header.uid, _MAX_OCTAL_ID),
        (b"gid", header.gid, _MAX_OCTAL_ID),
        (b"mtime", header.mtime, _MAX_OCTAL),
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


def _block(header: Header) -> bytes:
    block = bytearray(BLOCK)
    block[0:100] = header.path[:100].ljust(100, b"\0")
    block[100:124] = _octal(header.mode, 8) + _octal(header.uid, 8) + _octal(header.gid, 8)
    block[124:148] = _octal(header.size, 12) + _octal(header.mtime, 12)
    block[148:157] = b"        " + header.flag
    block[157:257] = header.link[:100].ljust(100, b"\0")
    block[257:265] = b"ustar\x0000"
    block[329:345] = _octal(header.major, 8) + _octal(header.minor, 8)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
