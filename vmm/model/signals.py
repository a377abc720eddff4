"""Signal names and numbers, as a user writes them (signal(7))."""

from __future__ import annotations

import signal

from vmm.model.errors import UsageError


def number(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``term``, ``15`` or ``RTMIN+3`` as a number."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isdigit():
        if 0 < int(name) <= signal.SIGRTMAX:
            return int(name)
        raise UsageError(f"Invalid signal: {text}", f"a number from 1 to {int(signal.SIGRTMAX)}")
    base, sign, offset = name.partition("+")
    known: int | None = getattr(signal, f"SIG{base}", None)
    if known is None or (sign and not (base == "RTMIN" and offset.isdigit())):
        raise UsageError(f"Invalid signal: {text}", "give a name as in `kill -l`, or a number")
    value = int(known) + int(offset or 0)
    if value > signal.SIGRTMAX:
        raise UsageError(f"Invalid signal: {text}", "there is no such real-time signal")
    return value
