"""File streams: files and trees on their way into or out of a workload (native/LAUNCH.md).

Pure: bytes come from and go to callables.  What is read may be hostile: every record is
bounded before it is kept, every name is checked before it is yielded.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmm.model.errors import InvalidDocument, VmmError
from vmm.model.launch import encode_record

MAX_ENTRY = 2 << 20
MAX_ARGUMENTS = 4096
#: linux/limits.h, XATTR_NAME_MAX of xattr(7).
PATH_MAX = 4096
NAME_MAX = 255
CHUNK = 64 << 10

DIRECTORY = "d"
FILE = "f"
SYMLINK = "l"
HARD_LINK = "h"
CHARACTER = "c"
BLOCK_DEVICE = "b"
FIFO = "p"
_TYPES = "dflhcbp"
_FIXED = 10
_U32 = struct.Struct("<I")
_MAX_ID = 0xFFFFFFFE
_MAX_SIGNED = (1 << 63) - 1


class Entry(NamedTuple):
    """One file. Names are relative to the copied thing, which is ``.`` itself."""

    name: str
    type: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Bytes of content that follow; of files alone."""
    mtime: int = 0
    """Nanoseconds since the epoch."""
    rdev: int = 0
    """As os.makedev() makes it; of devices alone."""
    link: str = ""
    """The text of a symbolic link; the earlier name of a hard link."""
    xattrs: tuple[tuple[str, bytes], ...] = ()


#: Longer numbers are none of errno(3)'s, and int() refuses very long ones.
_ERRNO_DIGITS = 10


class CopyFailed(VmmError):
    """The other side could not go on; ``errno`` as there, 0 without one."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


def _fault(text: str) -> InvalidDocument:
    return InvalidDocument("file stream", [text], "the copy is incomplete")


def is_name(name: str) -> bool:
    """``.``, or parts between slashes of which none is empty, ``.`` or ``..``."""
    data = os.fsencode(name)
    if not data or len(data) >= PATH_MAX or b"\0" in data:
        return False
    parts = data.split(b"/")
    return data == b"." or not any(p in (b"", b".", b"..") or len(p) > NAME_MAX for p in parts)


def rebase(entry: Entry, top: str) -> Entry:
    """The entry with ``top`` as the name of the copied thing."""
    return entry._replace(
        name=_below(top, entry.name),
        link=_below(top, entry.link) if entry.type == HARD_LINK else entry.link,
    )


def _below(top: str, name: str) -> str:
    if name == "." or top == ".":
        return top if name == "." else name
    return f"{top}/{name}"


def unchanged(entry: Entry) -> Entry:
    """What a conversion does to entries unless it is told otherwise."""
    return entry


class StreamReader:
    """Iterate over the entries; ``read`` gives the current one's content before the next.

    ``read`` of the source takes a size and gives that many bytes or fewer, b"" at its end.
    Raises InvalidDocument for what is no stream, CopyFailed for what the sender reports.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0
        self._kept = memoryview(b"")

    def __iter__(self) -> Iterator[Entry]:
        while True:
            while self._left:
                self.read(CHUNK)
            arguments = self._record()
            if arguments[0] == b"end":
                return
            if arguments[0] == b"error":
                raise _failure(arguments)
            entry = parse(arguments)
            self._left = entry.size
            yield entry

    def read(self, size: int = CHUNK) -> bytes:
        """Up to ``size`` bytes of the current file's content; b"" at its end."""
        data = self._some(min(size, self._left))
        self._left -= len(data)
        return data

    def _some(self, size: int) -> bytes:
        if size and not self._kept:
            self._kept = memoryview(self._read(CHUNK))
            if not self._kept:
                raise _fault("it ends too early")
        data, self._kept = bytes(self._kept[:size]), self._kept[size:]
        return data

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._some(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _record(self) -> list[bytes]:
        (count,) = _U32.unpack(self._exactly(4))
        if not 1 <= count <= MAX_ARGUMENTS:
            raise _fault(f"a record of {count} parts")
        arguments, room = [], MAX_ENTRY
        for _ in range(count):
            (length,) = _U32.unpack(self._exactly(4))
            room -= length + 5
            if room < 0:
                raise _fault(f"an entry of more than {MAX_ENTRY} bytes")
            data = self._exactly(length + 1)
            if data[-1]:
                raise _fault("a part without its end")
            arguments.append(data[:-1])
        return arguments


def _failure(arguments: list[bytes]) -> CopyFailed:
    number, message = [*arguments[1:], b"", b""][:2]
    text = message[:1000].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    known = number.isdigit() and len(number) < _ERRNO_DIGITS
    return CopyFailed(shown or "the copy failed", int(number) if known else 0)


def parse(arguments: list[bytes]) -> Entry:
    """The entry that a record describes; InvalidDocument for one that may not be."""
    if len(arguments) < _FIXED or len(arguments) % 2 or arguments[0] != b"entry":
        raise _fault(f"a record {arguments[0][:40]!r} that is no entry")
    name, kind, mode, uid, gid, size, mtime, rdev, link = arguments[1:_FIXED]
    entry = Entry(
        name=os.fsdecode(name),
        type=kind.decode("latin-1"),
        mode=_number(mode, 0o7777, 8),
        uid=_number(uid, _MAX_ID),
        gid=_number(gid, _MAX_ID),
        size=_number(size, _MAX_SIGNED),
        mtime=_signed(mtime),
        rdev=_number(rdev, _MAX_SIGNED),
        link=os.fsdecode(link),
        xattrs=tuple(_attributes(arguments[_FIXED:])),
    )
    if fault := _wrong(entry):
        raise _fault(f"{entry.name[:200]!r}: {fault}")
    return entry


def _wrong(entry: Entry) -> str:
    if not is_name(entry.name):
        return "such a name is refused"
    if len(entry.type) != 1 or entry.type not in _TYPES:
        return f"unknown type {entry.type[:40]!r}"
    if entry.size and entry.type != FILE:
        return "only a file has content"
    if entry.type == HARD_LINK and (not is_name(entry.link) or entry.link in (".", entry.name)):
        return f"a hard link to {entry.link[:200]!r} is refused"
    length = len(os.fsencode(entry.link))
    if entry.type == SYMLINK and (not 0 < length < PATH_MAX or "\0" in entry.link):
        return "a symbolic link that cannot be"
    return ""


def _attributes(arguments: list[bytes]) -> Iterator[tuple[str, bytes]]:
    for key, value in zip(arguments[::2], arguments[1::2], strict=True):
        if not key or b"\0" in key or len(key) > NAME_MAX:
            raise _fault(f"an attribute {key[:80]!r} that cannot be")
        yield os.fsdecode(key), value


def _number(text: bytes, most: int, base: int = 10) -> int:
    if text.isdigit() and len(text) <= 20:
        try:
            value = int(text, base)
        except ValueError:
            value = most + 1
        if value <= most:
            return value
    raise _fault(f"{text[:40]!r} is no number from 0 to {most}")


def _signed(text: bytes) -> int:
    if text[:1] == b"-":
        return -_number(text[1:], _MAX_SIGNED)
    return _number(text, _MAX_SIGNED)


def encode(entry: Entry) -> bytes:
    """The record of an entry; VmmError for one that no reader would take."""
    if fault := _wrong(entry):
        raise VmmError(f"{entry.name[:200]!r} cannot be copied: {fault}")
    fields = (f"{entry.mode & 0o7777:o}", entry.uid, entry.gid, entry.size, entry.mtime, entry.rdev)
    attributes = [part for pair in entry.xattrs for part in pair]
    parts = ["entry", entry.name, entry.type, *map(str, fields), entry.link, *attributes]
    data = encode_record(parts)
    if len(data) > MAX_ENTRY or len(parts) > MAX_ARGUMENTS:
        raise VmmError(f"{entry.name[:200]!r} has too many extended attributes to be copied")
    return data


class StreamWriter:
    """Write entries, each with its content, then ``end``."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._left = 0

    def entry(self, entry: Entry) -> None:
        self._complete()
        self._write(encode(entry))
        self._left = entry.size

    def content(self, data: bytes) -> None:
        """More of the current file; all parts together are its ``size``."""
        if len(data) > self._left:
            raise ValueError("more content than was announced")
        self._left -= len(data)
        self._write(data)

    def zeroes(self, size: int) -> None:
        """A hole, or what a file that shrank lacks."""
        while size:
            part = min(size, CHUNK)
            self.content(bytes(part))
            size -= part

    def end(self) -> None:
        self._complete()
        self._write(encode_record(("end",)))

    def error(self, errno: int, message: str) -> None:
        """In place of ``end``: the copy is incomplete."""
        self._complete()
        self._write(encode_record(("error", str(errno), message[:1000])))

    def _complete(self) -> None:
        if self._left:
            raise ValueError(f"{self._left} bytes of content are missing")
