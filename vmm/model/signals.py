"""Signal names and numbers, as a user writes them (signal(7))."""

from __future__ import annotations

import re
from signal import SIGRTMAX, SIGRTMIN, Signals

from vmm.model.errors import UsageError

_REAL_TIME = re.compile(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?\Z")


def number(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``term``, ``15``, ``RTMIN+3`` or ``RTMAX-1`` as a number."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        found = int(name)
    elif match := _REAL_TIME.match(name):
        base = SIGRTMIN if match[1] == "MIN" else SIGRTMAX
        found = int(base) + int((match[2] or "+") + (match[3] or "0"))
    else:
        found = int(Signals.__members__.get(f"SIG{name}", 0))
    if not 1 <= found <= SIGRTMAX:
        raise UsageError(
            f"Invalid signal: {text}",
            f"give a name as in `kill -l`, or a number from 1 to {int(SIGRTMAX)}",
        )
    return found
