"""Kernel modules: where they are and what each needs.

Dependencies are read from the modules themselves (their section ``.modinfo``), because
``modules.dep`` is made by depmod when a package is configured, which nobody does here.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, cast

from vmm.model.errors import CorruptStore, HostError, VmmError

#: What a guest needs: its devices, its root, its shared directory.
REQUIRED = (
    "virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "virtio_balloon",
    "erofs", "ext4", "overlay", "fuse", "virtiofs",
)  # fmt: skip
#: Asked for at run time by name, so no module's list of dependencies has it (ext4's checksums); and
#: the power button, by which libvirt shuts a guest down.
OPTIONAL = ("crc32c_generic", "button")

_LARGEST = 64 << 20
_DEEPEST = 32


def module_name(path: str) -> str:
    """``kernel/drivers/char/hw_random/virtio-rng.ko.xz`` is ``virtio_rng``."""
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")


class Modules:
    """The modules below a directory like ``/lib/modules/VERSION``."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    @cached_property
    def built_in(self) -> frozenset[str]:
        """Names of what is no module but part of the kernel (kbuild's ``modules.builtin``)."""
        try:
            lines = (self.directory / "modules.builtin").read_text().split()
        except FileNotFoundError:
            return frozenset()
        return frozenset(map(module_name, lines))

    @cached_property
    def files(self) -> dict[str, str]:
        """Path of each module's file by its name."""
        found: dict[str, str] = {}
        for directory, below, names in os.walk(self.directory / "kernel"):
            below.sort()
            for name in names:
                if name.endswith((".ko", ".ko.gz", ".ko.xz", ".ko.zst")):
                    found[module_name(name)] = os.path.join(directory, name)
        return found

    def ordered(
        self, required: Sequence[str] = REQUIRED, optional: Sequence[str] = OPTIONAL
    ) -> list[str]:
        """Names of the modules to load, each after those it needs; without what is built in.

        HostError names a required one that the kernel has neither built in nor as a file.
        """
        order: list[str] = []
        for name in optional:
            if name in self.files:
                self._add(name, name, order, ())
        for name in required:
            self._add(name, name, order, ())
        return order

    def content(self, name: str) -> bytes:
        """A module's ELF file, decompressed, without the signature behind it."""
        path = self.files[name]
        return _unsigned(_decompressed(path))

    def _add(self, name: str, wanted: str, order: list[str], above: tuple[str, ...]) -> None:
        if name in order or name in self.built_in:
            return
        if name not in self.files:
            needed = f", which {wanted} needs" if name != wanted else ""
            raise HostError(
                f"the kernel's modules in {self.directory} lack {name}{needed}",
                "a guest's kernel must have it, as a module or built in: vmm kernel fetch",
            )
        if name in above or len(above) > _DEEPEST:
            raise CorruptStore(f"{self.files[name]}: modules that need each other")
        for needed in self._depends(name):
            self._add(needed, wanted, order, (*above, name))
        order.append(name)

    def _depends(self, name: str) -> list[str]:
        fields = module_info(_decompressed(self.files[name]), self.files[name])
        text = ",".join(value for key, value in fields if key == "depends")
        return [part.replace("-", "_") for part in text.split(",") if part]


def module_info(content: bytes, shown: str) -> list[tuple[str, str]]:
    """Keys and values of the section ``.modinfo`` (elf(5); linux/moduleparam.h)."""
    try:
        section = _section(content, b".modinfo")
    except (struct.error, IndexError):
        section = None
    if section is None:
        raise CorruptStore(f"{shown}: not a kernel module of a 64-bit little-endian machine")
    pairs = (part.decode(errors="replace").partition("=") for part in section.split(b"\0") if part)
    return [(key, value) for key, _, value in pairs]


def _section(content: bytes, wanted: bytes) -> bytes | None:
    if content[:6] != b"\x7fELF\x02\x01":
        return None
    table = struct.unpack_from("<Q", content, 40)[0]
    size, count, names_at = struct.unpack_from("<HHH", content, 58)
    headers = [struct.unpack_from("<IIQQQQ", content, table + i * size) for i in range(count)]
    names = headers[names_at][4]
    for header in headers:
        start = names + header[0]
        if content[start : start + len(wanted) + 1] == wanted + b"\0":
            return content[header[4] : header[4] + header[5]]
    return None


_SIGNED = b"~Module signature appended~\n"


def _unsigned(content: bytes) -> bytes:
    """Without the signature (linux/module_signature.h): checking it takes a guest longer than
    all the rest of loading, and vouches for files that the host's root wrote anyway."""
    if not content.endswith(_SIGNED):
        return content
    length = struct.unpack_from(">I", content, len(content) - len(_SIGNED) - 4)[0]
    end = len(content) - len(_SIGNED) - 12 - length
    return content[:end] if end > 0 else content


def _decompressed(path: str) -> bytes:
    try:
        return b"".join(_bounded(_opened(path), path))
    except (EOFError, ValueError) as error:
        raise CorruptStore(f"{path}: {error}") from None
    except OSError as error:
        if error.errno is None:  # gzip and lzma's own
            raise CorruptStore(f"{path}: {error}") from None
        raise HostError(f"{path}: {error.strerror}") from None


def _opened(path: str) -> Iterator[bytes]:
    if path.endswith(".zst"):
        from vmm.guest.unpack import unpacked

        with open(path, "rb") as source:
            yield from unpacked("zstd", source)
        return
    with _reader(path) as file:
        while piece := file.read(1 << 20):
            yield piece


def _reader(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        import gzip

        return cast("IO[bytes]", gzip.open(path))
    if path.endswith(".xz"):
        import lzma

        return cast("IO[bytes]", lzma.open(path))
    return open(path, "rb")


def _bounded(pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > _LARGEST:
            raise VmmError(f"{path}: a module of more than {_LARGEST >> 20} MiB")
        yield piece
