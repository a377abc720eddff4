"""Reading tar archives that may be hostile: ustar, GNU and PAX, one member at a time.

Formats: POSIX.1-2017 pax ("pax Interchange Format", "ustar Interchange Format"),
GNU tar manual ("Basic Tar Format", "Storing Sparse Files").  Every header is
bounded before it is read into memory.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from vmm.model.errors import InvalidDocument
from vmm.storage.sparse import Segments, gnu_segments, pax_map, pax_segments, sum_of

BLOCK = 512
CHUNK = 1 << 20
MAX_EXTENDED = 1 << 20
MAX_NAME = 4096
MAX_SIZE = (1 << 63) - 1

REGULAR = "0"
HARD_LINK = "1"
SYMLINK = "2"
CHARACTER = "3"
BLOCK_DEVICE = "4"
DIRECTORY = "5"
FIFO = "6"
_REGULAR_TYPES = b"\0" + b"07S"
_HEADER_ONLY = frozenset("123456")
_ZERO_BLOCK = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_UNSIGNED = struct.Struct("148B8x356B")
_SIGNED = struct.Struct("148b8x356b")


class Member(NamedTuple):
    """One entry of an archive. ``size`` is the file's, ``stored`` the bytes in the archive."""

    name: bytes
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    stored: int
    mtime: int
    """Nanoseconds since the epoch."""
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    segments: Segments | None
    """Where the stored bytes belong in a sparse file."""
    leading_map: bool = False


class ArchiveError(InvalidDocument):
    """An archive that is damaged, or that asks for something unsafe."""

    def __init__(self, fault: str, hint: str = "") -> None:
        super().__init__("archive", [fault], hint)


class _Counted(io.RawIOBase):
    """The archive's bytes, hashed and limited while they are read."""

    def __init__(self, stream: IO[bytes], limit: int, digest: bool) -> None:
        self._stream = stream
        self._limit = limit
        self.count = 0
        self.hash = hashlib.sha256() if digest else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        if self.count > self._limit:
            raise ArchiveError(f"it unpacks to more than {self._limit} bytes")
        if self.hash is not None:
            self.hash.update(data)
        return len(data)


class TarReader:
    """Iterate over the members; the content of each is read before the next one.

    ``limit`` bounds the archive's bytes; ``digest`` computes their sha256.
    """

    def __init__(self, stream: IO[bytes], *, limit: int = MAX_SIZE, digest: bool = False) -> None:
        self._raw = _Counted(stream, limit, digest)
        self._in = io.BufferedReader(self._raw, CHUNK)
        self._left = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            self._left, self._padding = member.stored, -member.stored % BLOCK
            if member.leading_map:
                member = self._with_map(member)
            yield member
            self._skip(self._left + self._padding)

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of the current member's content; b"" at its end."""
        data = self._in.read(min(size, self._left))
        if not data and size and self._left:
            raise ArchiveError("it ends in the middle of a file")
        self._left -= len(data)
        return data

    def drain(self) -> tuple[str, int]:
        """Read what follows the last member; the digest and size of the whole archive."""
        while self._in.read(CHUNK):
            pass
        digest = self._raw.hash.hexdigest() if self._raw.hash else ""
        return f"sha256:{digest}", self._raw.count

    def _exactly(self, size: int) -> bytes:
        data = self._in.read(size)
        if len(data) != size:
            raise ArchiveError("it ends in the middle of an entry")
        return data

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._exactly(min(size, CHUNK)))

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise ArchiveError(f"an extended header of {size} bytes (at most {MAX_EXTENDED})")
        data = self._exactly(size)
        self._skip(-size % BLOCK)
        return data

    def _next(self) -> Member | None:
        records: dict[bytes, bytes] = {}
        sparse: list[int] = []
        long_name = long_link = b""
        for _ in range(64):
            header = self._in.read(BLOCK)
            if not header or header == _ZERO_BLOCK:
                return None
            _check(header)
            kind = header[156:157]
            if kind == b"x":
                sparse = []
                records = parse_records(self._extended(number(header[124:136])), sparse)
            elif kind == b"g":
                self._global |= parse_records(self._extended(number(header[124:136])), [])
                if sum(map(len, self._global.values())) > MAX_EXTENDED:
                    raise ArchiveError("its global headers are too large")
            elif kind == b"L":
                long_name = self._extended(number(header[124:136])).rstrip(b"\0")
            elif kind == b"K":
                long_link = self._extended(number(header[124:136])).rstrip(b"\0")
            elif kind in (b"V", b"N"):
                self._skip(-(-number(header[124:136]) // BLOCK) * BLOCK)
            else:
                return self._member(header, self._global | records, sparse, long_name, long_link)
        raise ArchiveError("more than 64 extended headers before one entry")

    def _member(
        self,
        header: bytes,
        records: dict[bytes, bytes],
        sparse: list[int],
        name: bytes,
        link: bytes,
    ) -> Member:
        name = records.get(b"path") or name or _name(header)
        link = records.get(b"linkpath") or link or _text(header[157:257])
        kind = _kind(header[156:157], name)
        stored = _decimal(records, b"size", header[124:136])
        size, segments, leads = stored, None, False
        if kind in _HEADER_ONLY:
            size = stored = 0
        elif header[156:157] == b"S":
            size, segments = gnu_segments(header, lambda: self._exactly(BLOCK), number)
            _check_sparse(segments, size, stored)
        elif any(key.startswith(b"GNU.sparse.") for key in records):
            size, segments, leads = pax_segments(records, sparse, stored)
            name = records.get(b"GNU.sparse.name") or name
            if segments is not None:
                _check_sparse(segments, size, stored)
        return Member(
            name=_checked_name(name),
            type=kind,
            mode=number(header[100:108]) & 0o7777,
            uid=_owner(records, b"uid", header[108:116]),
            gid=_owner(records, b"gid", header[116:124]),
            size=size,
            stored=stored,
            mtime=_mtime(records, header[136:148]),
            link=_checked_name(link),
            major=number(header[329:337]) if kind in "34" else 0,
            minor=number(header[337:345]) if kind in "34" else 0,
            xattrs={k[len(_XATTR) :]: v for k, v in records.items() if k.startswith(_XATTR)},
            segments=segments,
            leading_map=leads,
        )

    def _with_map(self, member: Member) -> Member:
        """Read the map that leads the content of a PAX 1.0 sparse file."""
        segments = pax_map(self._block_of_content)
        _check_sparse(segments, member.size, self._left)
        return member._replace(segments=segments)

    def _block_of_content(self) -> bytes:
        if self._left < BLOCK:
            raise ArchiveError("a sparse file's map is cut off")
        self._left -= BLOCK
        return self._exactly(BLOCK)


def parse_records(data: bytes, sparse: list[int]) -> dict[bytes, bytes]:
    """The ``length key=value`` records of a PAX header.

    The repeated ``GNU.sparse.offset`` and ``numbytes`` of sparse format 0.0 go to ``sparse``.
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise ArchiveError("a PAX record without a length")
        end = position + int(digits)
        equals = data.find(b"=", space, end)
        if end > len(data) or equals < 0 or data[end - 1 : end] != b"\n":
            raise ArchiveError("a PAX record whose length is wrong")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(_whole(value))
        records[key] = value
        position = end
    return records


def number(field: bytes) -> int:
    """A number in octal, or in base 256 when the first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -MAX_SIZE <= value <= MAX_SIZE:
            raise ArchiveError(f"a number out of range: {value}")
        return value
    text = field.strip(b" \0").split(b"\0", 1)[0]
    if text.strip(b"01234567"):
        raise ArchiveError(f"{text!r} is not an octal number")
    return int(text or b"0", 8)


def _check(header: bytes) -> None:
    if len(header) != BLOCK:
        raise ArchiveError("it ends in the middle of a header")
    stored = number(header[148:156])
    if (
        stored != sum(_UNSIGNED.unpack(header)) + 256
        and stored != sum(_SIGNED.unpack(header)) + 256
    ):
        raise ArchiveError(
            "a header with a wrong checksum", "this is no tar archive, or a damaged one"
        )
    if number(header[124:136]) < 0:
        raise ArchiveError("an entry of negative size")


def _check_sparse(segments: Segments, size: int, stored: int) -> None:
    end = 0
    for offset, length in segments:
        if offset < end or length < 0 or offset + length > size:
            raise ArchiveError("a sparse file whose map is wrong")
        end = offset + length
    if sum_of(segments) != stored:
        raise ArchiveError("a sparse file whose map does not fit its content")


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _name(header: bytes) -> bytes:
    name = _text(header[0:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _checked_name(name: bytes) -> bytes:
    if len(name) > MAX_NAME or b"\0" in name:
        raise ArchiveError(f"a name of more than {MAX_NAME} bytes or with a NUL: {name[:80]!r}")
    return name


def _kind(flag: bytes, name: bytes) -> str:
    if flag in _REGULAR_TYPES:
        return DIRECTORY if name.endswith(b"/") and flag in b"\0" + b"0" else REGULAR
    if flag in b"123456":
        return flag.decode()
    raise ArchiveError(f"entry {name[:80]!r} has the unknown type {flag!r}")


def _whole(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ArchiveError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _decimal(records: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    if key in records:
        value = _whole(records[key])
        if value > MAX_SIZE:
            raise ArchiveError(f"{key.decode()} is out of range: {value}")
        return value
    return number(field)


def _owner(records: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    value = _decimal(records, key, field)
    if not 0 <= value < 0xFFFFFFFF:
        raise ArchiveError(f"{key.decode()} is out of range: {value}")
    return value


def _mtime(records: dict[bytes, bytes], field: bytes) -> int:
    if b"mtime" not in records:
        return _bounded_time(number(field) * 10**9)
    seconds, _, fraction = records[b"mtime"].partition(b".")
    sign = -1 if seconds.startswith(b"-") else 1
    whole = _whole(seconds.lstrip(b"-") or b"0") * 10**9
    part = _whole(fraction[:9].ljust(9, b"0")) if fraction else 0
    return _bounded_time(sign * (whole + part))


def _bounded_time(nanoseconds: int) -> int:
    """Times beyond 64-bit nanoseconds say nothing; keep them where file systems can."""
    return max(-(1 << 62), min(nanoseconds, 1 << 62))
