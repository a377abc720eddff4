"""The engine's face: one method per use-case. The CLI and every other face call nothing else."""

from __future__ import annotations

from typing import Any, Protocol


class Console(Protocol):
    """Where an attached session's streams go: the CLI's terminal, an API connection."""

    def pump(
        self, control: Any, *, channel: int, stdin: bool, tty: bool, exec_id: str = ""
    ) -> int | None:
        """Carry the streams until the end (exit code) or the detach keys (None)."""
        ...
