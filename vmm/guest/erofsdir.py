"""Directories of EROFS: blocks of sorted entries, each block with its own names behind them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

#: Of the superblock (Linux, fs/erofs/erofs_fs.h).
MAGIC = 0xE0F5E1E2
_BLOCK = 4096
_ENTRY = struct.Struct("<QHBx")


class Dirent(NamedTuple):
    """A name, what it is (FT_REG_FILE …: 1 regular, 2 directory, …) and its inode."""

    name: bytes
    kind: int
    nid: int


def directory_size(names: Iterable[bytes]) -> int:
    """Bytes of the directory that holds ``names`` beside ``.`` and ``..``."""
    blocks = [[len(name) for name in block] for block in _split(sorted([b".", b"..", *names]))]
    return (len(blocks) - 1) * _BLOCK + sum(blocks[-1]) + _ENTRY.size * len(blocks[-1])


def directory_blocks(entries: list[Dirent]) -> bytes:
    """The content of a directory; names are found by bisection, so they are sorted as bytes."""
    by_name = {entry.name: entry for entry in entries}
    blocks = [_block([by_name[n] for n in block]) for block in _split(sorted(by_name))]
    padded = [block.ljust(_BLOCK, b"\0") for block in blocks[:-1]]
    return b"".join([*padded, blocks[-1]])


def _split(names: list[bytes]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    used = 0
    for name in names:
        size = _ENTRY.size + len(name)
        if used + size > _BLOCK:
            yield block
            block, used = [], 0
        block.append(name)
        used += size
    yield block


def _block(entries: list[Dirent]) -> bytes:
    at = _ENTRY.size * len(entries)
    head = bytearray()
    for entry in entries:
        head += _ENTRY.pack(entry.nid, at, entry.kind)
        at += len(entry.name)
    return bytes(head) + b"".join(entry.name for entry in entries)
