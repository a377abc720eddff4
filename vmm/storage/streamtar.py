"""File streams from and to tar archives; the archives may be hostile, and the streams too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO

from vmm.model import filestream as fs
from vmm.model.filestream import Entry, StreamReader, StreamWriter, unchanged
from vmm.storage import tarheader, tarstream
from vmm.storage.difftar import Sink
from vmm.storage.tarheader import Header
from vmm.storage.tarstream import BLOCK, CHUNK, ArchiveError, Member, TarReader
from vmm.storage.untar import Limits

_FLAGS = {
    fs.FILE: b"0",
    fs.HARD_LINK: b"1",
    fs.SYMLINK: b"2",
    fs.CHARACTER: b"3",
    fs.BLOCK_DEVICE: b"4",
    fs.DIRECTORY: b"5",
    fs.FIFO: b"6",
}
_TYPES = {flag.decode(): kind for kind, flag in _FLAGS.items()}


def stream_to_tar(
    reader: StreamReader, out: Sink, change: Callable[[Entry], Entry] = unchanged
) -> None:
    """Write the files of a stream as a tar. Times are in seconds; every name is relative."""
    for given in reader:
        entry = change(given)
        out.write(_header(entry))
        while data := reader.read(CHUNK):
            out.write(data)
        out.write(bytes(-given.size % BLOCK))
    out.write(bytes(2 * BLOCK))


def _header(entry: Entry) -> bytes:
    directory = entry.type == fs.DIRECTORY
    header = Header(
        path=os.fsencode(entry.name) + (b"/" if directory else b""),
        flag=_FLAGS[entry.type],
        size=entry.size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime // 10**9,
        link=os.fsencode(entry.link),
        major=os.major(entry.rdev),
        minor=os.minor(entry.rdev),
    )
    return tarheader.encode(header, {os.fsencode(key): value for key, value in entry.xattrs})


def tar_to_stream(
    stream: IO[bytes],
    writer: StreamWriter,
    change: Callable[[Entry], Entry] = unchanged,
    limits: Limits | None = None,
) -> None:
    """Write the members of an uncompressed tar as a stream, its end included.

    Raises ArchiveError for names that lead out, for a damaged archive and beyond ``limits``.
    """
    limits = limits or Limits()
    reader = TarReader(stream, limit=limits.archive)
    entries = content = 0
    for member in reader:
        entry = change(_entry(member))
        entries, content = entries + 1, content + entry.size
        if entries > limits.entries or content > limits.content:
            raise ArchiveError(
                f"more than {limits.entries} entries or {limits.content} bytes of content"
            )
        writer.entry(entry)
        _content(member, reader, writer)
    writer.end()


def _entry(member: Member) -> Entry:
    kind = _TYPES[member.type]
    link = os.fsdecode(member.link)
    if kind == fs.HARD_LINK:
        link = _inside(member.link)
    device = kind in (fs.CHARACTER, fs.BLOCK_DEVICE)
    if device and not (0 <= member.major < 1 << 12 and 0 <= member.minor < 1 << 20):
        raise ArchiveError(f"entry {member.name[:200]!r}: device number out of range")
    return Entry(
        name=_inside(member.name),
        type=kind,
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        size=member.size if kind == fs.FILE else 0,
        mtime=member.mtime,
        rdev=os.makedev(member.major, member.minor) if device else 0,
        link=link if kind in (fs.HARD_LINK, fs.SYMLINK) else "",
        xattrs=tuple((os.fsdecode(key), value) for key, value in member.xattrs.items()),
    )


def _inside(raw: bytes) -> str:
    """The name without ``.`` and ``..``; leaving the archive's root is refused."""
    parts: list[bytes] = []
    for part in raw.split(b"/"):
        if part == b"..":
            if not parts:
                raise ArchiveError(f"entry {raw[:200]!r} is outside of the archive's root")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return os.fsdecode(b"/".join(parts)) or "."


def _content(member: Member, reader: TarReader, writer: StreamWriter) -> None:
    """The content, with zeroes where a sparse member has holes."""
    if member.type != tarstream.REGULAR:
        return
    at = 0
    for offset, length in member.segments if member.segments is not None else [(0, member.size)]:
        writer.zeroes(offset - at)
        at = offset + length
        while length:
            data = reader.read(min(length, CHUNK))
            writer.content(data)
            length -= len(data)
    writer.zeroes(member.size - at)
