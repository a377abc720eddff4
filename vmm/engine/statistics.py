"""What workloads use: numbers of their shims, sampled, and the rows Docker makes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from vmm.control import frames
from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.status import LIVE, shown
from vmm.model import human
from vmm.model.errors import CorruptStore, NotFound, ShimLost, VmmError

if TYPE_CHECKING:
    from vmm.control.client import Control

#: Seconds that all workloads together have to answer: one that is silent delays no other more.
PATIENCE = 2.0
#: What a field shows that is not known.
UNKNOWN = "--"
Numbers = dict[str, int]


class Reading(NamedTuple):
    """A workload's numbers now and at the sample before; None: it runs, but did not answer."""

    id: str
    name: str
    #: How the caller called it.
    asked: str
    now: Numbers | None
    before: Numbers


class Monitor:
    """Samples the workloads named, or all that run (``everything``: all), again and again."""

    def __init__(self, ctx: Context, references: Sequence[str], *, everything: bool) -> None:
        self._ctx = ctx
        self._everything = everything
        self._named = [(ctx.index.lookup(reference).id, reference) for reference in references]
        self._connections: dict[str, Control] = {}
        self._last: dict[str, Numbers] = {}

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for control in self._connections.values():
            control.close()

    def sample(self) -> list[Reading]:
        """One reading each, newest workload first, or in the order they were named."""
        chosen = list(self._chosen())
        asked = [workload for workload, _, live in chosen if live and self._ask(workload)]
        answers = self._collect(asked)
        readings = []
        for workload, reference, live in chosen:
            with contextlib.suppress(CorruptStore, NotFound):  # removed meanwhile
                numbers = answers.get(workload) if live else {}
                before = self._last.get(workload) or numbers or {}
                name = self._ctx.index.lookup(workload).name
                readings.append(Reading(workload, name, reference or name, numbers, before))
        self._last.update((w, numbers) for w, numbers in answers.items() if numbers)
        return readings

    def _chosen(self) -> Iterator[tuple[str, str, bool]]:
        """Id, reference and whether it runs, of each that has a row."""
        if self._named:
            named = [(w, reference) for w, reference in self._named if self._exists(w)]
        else:
            named = [(row.id, "") for row in self._ctx.index.rows()]
        for workload, reference in named:
            live = shown(self._ctx, workload).status in LIVE
            if live or reference or self._everything:
                yield workload, reference, live

    def _exists(self, workload: str) -> bool:
        with contextlib.suppress(NotFound):
            return self._ctx.index.lookup(workload).id == workload
        return False

    def _ask(self, workload: str) -> bool:
        """Send the request to the workload's shim; whether one took it."""
        try:
            if workload not in self._connections:
                self._connections[workload] = launching.connect(self._ctx, workload)
            self._connections[workload].send(frames.STATS, frames.encode_args())
        except VmmError:
            self._drop(workload)
            return False
        return True

    def _drop(self, workload: str) -> None:
        if control := self._connections.pop(workload, None):
            control.close()

    def _collect(self, asked: Sequence[str]) -> dict[str, Numbers]:
        """The answers; who does not answer in time is asked over a new connection next time."""
        end = time.monotonic() + PATIENCE
        answers = {}
        for workload in asked:
            try:
                frame = self._connections[workload].next_frame(max(0.0, end - time.monotonic()))
            except ShimLost:
                frame = None
            if frame is None or frame.type != frames.OK:
                self._drop(workload)
                continue
            with contextlib.suppress(frames.FrameError):
                answers[workload] = frames.numbers_of(frames.decode_args(frame.payload))
        return answers


def row(reading: Reading, *, truncate: bool = True) -> dict[str, str]:
    """The fields of ``vmm stats --format``; those of a workload that does not run are zero."""
    from vmm.model.ids import short

    names = {
        "Container": reading.asked,
        "ID": short(reading.id) if truncate else reading.id,
        "Name": reading.name,
    }
    now = reading.now
    if now is None:
        values = ("CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
        return names | dict.fromkeys(values, UNKNOWN)
    memory, limit = now.get("memory", 0), now.get("memory_limit", 0)
    return names | {
        "CPUPerc": f"{cpu_percent(reading.before, now):.2f}%",
        "MemUsage": f"{human.binary_size(memory)} / {human.binary_size(limit)}",
        "MemPerc": f"{memory / limit * 100 if limit else 0:.2f}%",
        "NetIO": _pair(now, "net_rx", "net_tx"),
        "BlockIO": _pair(now, "blk_read", "blk_write"),
        "PIDs": str(now.get("pids", 0)),
    }


def _pair(now: Numbers, first: str, second: str) -> str:
    return " / ".join(human.size(now.get(name, 0)) for name in (first, second))


def cpu_percent(before: Numbers, now: Numbers) -> float:
    """Of one CPU, in percent: 200 are two CPUs' whole time."""
    used = now.get("cpu_ns", 0) - before.get("cpu_ns", 0)
    whole = now.get("system_ns", 0) - before.get("system_ns", 0)
    return used / whole * max(1, now.get("cpus", 1)) * 100 if used > 0 and whole > 0 else 0.0
