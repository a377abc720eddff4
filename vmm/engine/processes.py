"""The processes of a workload, as the kernel that runs them lists them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmm.engine import launching, psformat
from vmm.engine.context import Context
from vmm.engine.psformat import Moment, Process
from vmm.engine.status import halted, seen
from vmm.model.errors import Conflict

#: Numbers at the beginning of a line; the name and the command line follow.
_NUMBERS = 11
#: What the other side says is believed up to here (characters of a number).
_DIGITS = 20


class Listing(NamedTuple):
    """A table as ps(1) prints it."""

    titles: list[str]
    rows: list[list[str]]


def top(ctx: Context, reference: str, options: Sequence[str]) -> Listing:
    """The processes with the columns that ``options`` of ps(1) ask for (none: ``-ef``).

    UsageError for an option that is not known, Conflict when the workload does not run.
    """
    columns = psformat.parse(options)
    row = ctx.index.lookup(reference)
    state = seen(ctx, row.id)
    if state.status not in ("running", "paused"):
        raise Conflict(f"Container {row.id} is not running", f"start it: vmm start {row.name}")
    if state.status == "paused" and halted(ctx, row.id):
        raise Conflict(f"Container {row.name} is paused: {state.error}", f"vmm unpause {row.name}")
    with launching.connect(ctx, row.id) as control:
        found = parse_lines(control.top())
        wants_memory = any(column.needs_memory for column in columns)
        memory = control.stats().get("memory_limit", 0) if wants_memory else 0
    moment = Moment(time.time(), memory)
    rows = [[column.value(process, moment) for column in columns] for process in found]
    return Listing([column.title for column in columns], rows)


def parse_lines(lines: Iterable[bytes]) -> list[Process]:
    """Lines of TOP (native/PROTOCOL.md, "Processes") by pid. What is not such a line, which only
    a guest that lies sends, is left out."""
    found = (_parse(line) for line in lines)
    return sorted((process for process in found if process), key=lambda process: process.pid)


def _parse(line: bytes) -> Process | None:
    # Printable ASCII by contract: anything else came from a guest that wants to be funny.
    text = "".join(c if " " <= c <= "~" or c == "\t" else "?" for c in line.decode("latin-1"))
    fields = text.split("\t")
    if len(fields) != _NUMBERS + 3:
        return None
    state = fields.pop(3)[:1] or "?"
    *numbers, comm, args = fields
    if not all(_whole(number) for number in numbers):
        return None
    return Process(state, comm, args, *map(int, numbers))


def _whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isdigit() and len(digits) <= _DIGITS
