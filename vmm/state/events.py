"""The event log of an instance: one JSON object a line, Docker's types, actions and actors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

#: Rotated once at this size (bytes), so that at most twice as much is kept.
LIMIT = 16 << 20


class EventLog:
    """Appends events; a line is one write(2), so that writers do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, action: str, actor: str, **attributes: str) -> None:
        """Record that ``action`` happened to ``actor`` (an id) now."""
        now = time.time_ns()
        event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": attributes},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path, flags, 0o600)
        try:
            os.write(fd, msgspec.json.encode(event) + b"\n")
            if os.fstat(fd).st_size > LIMIT:
                self.path.replace(self.path.with_suffix(".jsonl.1"))
        finally:
            os.close(fd)
