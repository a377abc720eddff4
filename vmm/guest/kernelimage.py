"""Kernel files: what a bzImage, an ELF kernel or an arm64 image says of itself.

Formats: the kernel's Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst;
elf(5); the PVH note of Xen's public/elfnote.h.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from vmm.model.errors import CorruptStore, UsageError

_MACHINES = {62: "amd64", 183: "arm64", 243: "riscv64"}
_BANNER = re.compile(rb"Linux version (\S{1,64}) \(")
_VERSION = re.compile(r"\d+\.\d+[\w.+~-]{0,60}\Z", re.ASCII)
_XEN_PHYS32_ENTRY = 18
#: Largest uncompressed kernel taken.
_LARGEST = 512 << 20


class KernelImage(NamedTuple):
    """A kernel's release (as uname(2) says it), architecture (GOARCH) and form."""

    version: str
    architecture: str
    #: "bzImage", "ELF" or "Image".
    form: str


def read_kernel(path: Path | str) -> KernelImage:
    """What the kernel file at ``path`` is; UsageError when it is none that could boot."""
    with _mapped(path) as data:
        if data[0x202:0x206] == b"HdrS":
            return _bzimage(data, path)
        if data[:6] == b"\x7fELF\x02\x01":
            machine = struct.unpack_from("<H", data, 18)[0]
            architecture = _MACHINES.get(machine)
            if architecture is None:
                raise _fault(path, f"an ELF file for a machine (number {machine}) vmm cannot boot")
            _check_elf(data, path)
            return KernelImage(_banner(data, path), architecture, "ELF")
        if data[0x38:0x3C] == b"ARM\x64":
            return KernelImage(_banner(data, path), "arm64", "Image")
    raise _fault(path, "not a Linux kernel (bzImage, ELF or arm64 Image)")


def uncompress(path: Path | str, target: IO[bytes]) -> bool:
    """Write the ELF kernel inside a bzImage to ``target``; False when there is none to be had.

    It must have a PVH entry point, by which it can be started directly.
    """
    with _mapped(path) as data:
        if data[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", data, 0x206)[0] < 0x208:
            return False
        start = ((data[0x1F1] or 4) + 1) * 512
        offset, length = struct.unpack_from("<II", data, 0x248)
        payload = data[start + offset : start + offset + length]
    pieces = _pieces(payload)
    if pieces is None:
        return False
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            if size > _LARGEST:
                raise CorruptStore(f"{path}: the kernel unpacks to more than {_LARGEST >> 20} MiB")
            target.write(piece)
    except (zlib.error, OSError, EOFError):
        return False
    target.flush()
    return size > 4096 and _has_pvh_entry(target)


def _mapped(path: Path | str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < 4096:
                raise _fault(path, "not a Linux kernel: it is too short")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except IsADirectoryError:
        raise _fault(path, "a directory, not a kernel") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _bzimage(data: mmap.mmap, path: Path | str) -> KernelImage:
    protocol, at = struct.unpack_from("<H", data, 0x206)[0], struct.unpack_from("<H", data, 0x20E)
    paragraphs = struct.unpack_from("<I", data, 0x1F4)[0]
    length = ((data[0x1F1] or 4) + 1) * 512 + paragraphs * 16
    if len(data) < length:
        raise _fault(path, f"truncated: {len(data)} bytes of {length}")
    if protocol < 0x20C or not struct.unpack_from("<H", data, 0x236)[0] & 1:
        raise _fault(path, "a kernel for 32-bit x86, which guests do not run")
    text = bytes(data[at[0] + 0x200 : at[0] + 0x200 + 128]).partition(b"\0")[0]
    words = text.decode("ascii", "replace").split()
    if not words or not _VERSION.match(words[0]):
        raise _fault(path, "its header names no kernel version")
    return KernelImage(words[0], "amd64", "bzImage")


def _check_elf(data: mmap.mmap, path: Path | str) -> None:
    """Whether all that is to be loaded is there."""
    try:
        ends = [offset + size for kind, offset, size in _segments(data) if kind == 1]
    except struct.error:
        ends = []
    if not ends:
        raise _fault(path, "an ELF file with nothing to load")
    if max(ends) > len(data):
        raise _fault(path, f"truncated: {len(data)} bytes of {max(ends)}")


def _segments(data: mmap.mmap | bytes) -> Iterator[tuple[int, int, int]]:
    """Type, offset and size in the file of an ELF file's segments."""
    table = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    for at in range(table, table + size * count, size or 56):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        yield kind, offset, length


def _banner(data: mmap.mmap, path: Path | str) -> str:
    match = _BANNER.search(data)
    version = match[1].decode("ascii", "replace") if match else ""
    if not _VERSION.match(version):
        raise _fault(path, "names no Linux version; is it a kernel, and not compressed?")
    return version


def _pieces(payload: bytes) -> Iterator[bytes] | None:
    """The pieces of a payload, which ends in its length except for gzip's own."""
    if payload[:2] == b"\x1f\x8b":
        return _gzip(payload)
    if payload[:6] == b"\xfd7zXZ\0":
        return _xz(payload)
    if payload[:4] == b"\x02\x21\x4c\x18":
        return _program("lz4", payload[:-4])
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return _program("zstd", payload[:-4])
    return None


def _gzip(payload: bytes) -> Iterator[bytes]:
    yield zlib.decompressobj(31).decompress(payload, _LARGEST)


def _xz(payload: bytes) -> Iterator[bytes]:
    import lzma

    try:
        yield lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, _LARGEST)
    except lzma.LZMAError as error:
        raise EOFError(str(error)) from None


def _program(name: str, payload: bytes) -> Iterator[bytes]:
    import tempfile

    from vmm.guest.unpack import unpacked

    with tempfile.TemporaryFile() as source:
        source.write(payload)
        source.seek(0)
        yield from unpacked(name, source)


def _has_pvh_entry(file: IO[bytes]) -> bool:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:6] != b"\x7fELF\x02\x01":
            return False
        try:
            notes = [bytes(data[o : o + n]) for kind, o, n in _segments(data) if kind == 4]
            whole = all(o + n <= len(data) for kind, o, n in _segments(data) if kind == 1)
        except struct.error:
            return False
    return whole and any(_names_entry(note) for note in notes)


def _names_entry(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        if kind == _XEN_PHYS32_ENTRY and notes[at + 12 : at + 16] == b"Xen\0":
            return True
        at += 12 + -(-name // 4) * 4 + -(-size // 4) * 4
    return False


def _fault(path: Path | str, what: str) -> UsageError:
    return UsageError(f"{path}: {what}", "give a kernel's vmlinuz, or get one: vmm kernel fetch")
