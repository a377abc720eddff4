"""Signals by name or number (signal(7))."""

from __future__ import annotations

import re

from vmm.model.errors import UsageError

_REAL_TIME = re.compile(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?\Z")
_LAST = 64


def number(text: str) -> int:
    """``SIGTERM``, ``term``, ``15`` and ``RTMIN+3`` alike; UsageError."""
    from signal import Signals

    name = text.upper().removeprefix("SIG")
    found = 0
    if name.isascii() and name.isdigit():
        found = int(name)
    elif match := _REAL_TIME.match(name):
        base = Signals.SIGRTMIN if match[1] == "MIN" else Signals.SIGRTMAX
        offset = int(match[3] or 0)
        found = int(base) + (-offset if match[2] == "-" else offset)
    else:
        found = int(getattr(Signals, "SIG" + name, 0)) if name.isalnum() else 0
    if not 1 <= found <= _LAST:
        raise UsageError(
            f"invalid signal {text!r:.40}", "write a name such as TERM, or a number from 1 to 64"
        )
    return found
