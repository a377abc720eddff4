"""Reading a workload's log: Docker's json-file format, over its rotated files, following it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO

import msgspec


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk of output; ``time`` is RFC 3339 with nanoseconds, UTC."""

    log: str
    stream: str
    time: str


_decoder = msgspec.json.Decoder(LogLine)


def read(
    path: str,
    *,
    tail: int | None = None,
    since: str = "",
    until: str = "",
    follow: Callable[[], bool] | None = None,
) -> Iterator[LogLine]:
    """Lines, oldest first; ``since`` and ``until`` are compared as RFC 3339 UTC text.

    With ``follow``, new lines are yielded until it returns False (the workload ended).
    """
    reader = _Follower(path)
    lines = _within(reader.history(), since, until)
    yield from lines if tail is None else deque(islice(lines, None), maxlen=tail)
    while follow is not None:
        going = follow()
        for line in reader.news():
            if until and line.time > until:
                return
            if not since or line.time >= since:
                yield line
        if not going:
            return
        time.sleep(0.05)


def _within(lines: Iterator[LogLine], since: str, until: str) -> Iterator[LogLine]:
    for line in lines:
        if (not since or line.time >= since) and (not until or line.time <= until):
            yield line


class _Follower:
    """Reads whole lines and notices when the file was rotated away."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def history(self) -> Iterator[LogLine]:
        number = 1
        while os.path.exists(f"{self.path}.{number}"):
            number += 1
        for old in range(number - 1, 0, -1):
            try:
                with open(f"{self.path}.{old}", "rb") as file:
                    yield from self._decode(file.read(), last=True)
            except FileNotFoundError:
                continue
        yield from self.news()

    def news(self) -> Iterator[LogLine]:
        while True:
            if self._file is None:
                try:
                    self._file = open(self.path, "rb")  # noqa: SIM115 - kept open to follow
                except FileNotFoundError:
                    return
            while chunk := self._file.read(1 << 20):
                yield from self._decode(chunk)
            if not self._rotated():
                return
            yield from self._decode(self._file.read())
            self._file.close()
            self._file = None

    def _rotated(self) -> bool:
        assert self._file is not None
        try:
            return os.stat(self.path).st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def _decode(self, data: bytes, last: bool = False) -> Iterator[LogLine]:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = b"" if last else rest
        for line in lines:
            try:
                yield _decoder.decode(line)
            except msgspec.MsgspecError:  # torn by a crash: the next line is whole again
                continue
