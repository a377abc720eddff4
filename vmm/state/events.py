"""The event log of an instance: one JSON object a line, Docker's types, actions and actors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from vmm.ports.space import is_full

#: Rotated once at this size (bytes), so that at most twice as much is kept.
LIMIT = 16 << 20


class EventLog:
    """Appends events; a line is one write(2), so that writers do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Record that ``action`` happened to ``actor`` (an id) now.

        A full disk loses events, as it loses log lines; half a line is taken back unless another
        writer came after it.
        """
        now = time.time_ns()
        event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        line = msgspec.json.encode(event) + b"\n"
        try:
            self._append(line)
        except OSError as error:
            if not is_full(error):
                raise

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        try:
            written = os.write(fd, line)
            end = os.lseek(fd, 0, os.SEEK_CUR)
            if written < len(line) and os.fstat(fd).st_size == end:
                os.ftruncate(fd, end - written)
            elif end > LIMIT:
                self.path.replace(self.path.with_suffix(".jsonl.1"))
        finally:
            os.close(fd)
