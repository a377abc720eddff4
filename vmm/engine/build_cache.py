"""The build cache: what an instruction made of a state, by the digest of both.

One small file per key below ``<root>/build-cache``.  An entry holds only if its layer is
still in the store; a damaged or foreign file is a miss, never an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from vmm.model.image import Layer
from vmm.ports.files import atomic_write

SCHEMA = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """``created`` is kept, so that a build from the cache makes the same image ID."""

    schema: int = SCHEMA
    created: str
    #: None: the instruction changed no file.
    layer: Layer | None = None


class BuildCache:
    """``enabled`` False: nothing is found, but what is made is kept for the next build."""

    def __init__(self, directory: Path, *, enabled: bool = True) -> None:
        self._directory = directory
        self._enabled = enabled

    def get(self, key: str) -> Entry | None:
        if not self._enabled:
            return None
        try:
            entry = msgspec.json.decode((self._directory / key).read_bytes(), type=Entry)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return entry if entry.schema == SCHEMA else None

    def put(self, key: str, entry: Entry) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(self._directory / key, msgspec.json.encode(entry))


def key_of(*parts: Any) -> str:
    """A file name made of everything the result depends on."""
    return hashlib.sha256(msgspec.json.encode([SCHEMA, *parts])).hexdigest() + ".json"
