"""The archive that a kernel unpacks as its first root: cpio's "newc" form.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import stat
from typing import IO


class Cpio:
    """Writes entries one after the other; close() ends the archive."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._number = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, content)

    def device(self, name: str, mode: int, major: int, minor: int) -> None:
        """A character device."""
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def close(self) -> None:
        self._entry("TRAILER!!!", 0)

    def _entry(
        self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._number += 1
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, the file's device, its own device, length of
        # the name, checksum (always 0)
        fields = (
            self._number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._out.write(header + bytes(-len(header) % 4))
        self._out.write(content + bytes(-len(content) % 4))
