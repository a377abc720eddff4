"""Multi-step changes: an undo stack while the writer lives, a journal for when it was killed.

A journal file says what was begun and on what.  Its writer holds a lock on it; a file
that nobody holds belongs to a writer that died, and the next mutating command recovers it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmm.ports.space import discard, write_new


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What was begun: ``create``, ``start``, ``remove``, … on which workload."""

    action: str
    workload: str
    pid: int = 0
    #: A removal that takes the anonymous volumes along.
    volumes: bool = False
    #: What runs a step.
    backend: str = "container"


class Undo:
    """Steps to take back when a change fails, last first."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def push(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def run(self) -> bool:
        """Take every step back; whether all of them could be."""
        whole = True
        while self._steps:
            try:
                self._steps.pop()()
            except Exception:  # the others are undone all the same, and the entry stays
                whole = False
        return whole


class Journal:
    """The journal directory of an instance."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def begin(
        self, action: str, workload: str, *, volumes: bool = False, backend: str = "container"
    ) -> Iterator[Undo]:
        """Record the change while the block runs.  After an exception what was pushed is undone,
        and the entry stays for the next command if that failed too."""
        entry = Entry(
            action=action, workload=workload, pid=os.getpid(), volumes=volumes, backend=backend
        )
        path, fd = self._write(entry)
        undo = Undo()
        try:
            yield undo
        except BaseException:
            if undo.run():
                discard(os.fspath(path), fd)
            raise
        else:
            discard(os.fspath(path), fd)
        finally:
            os.close(fd)

    def _write(self, entry: Entry) -> tuple[Path, int]:
        """The entry's file, whole before it has its name, and the descriptor that locks it."""
        name = f"{entry.action}-{entry.workload}-{os.urandom(4).hex()}"
        path, temporary = self.directory / f"{name}.json", self.directory / f"{name}.tmp"
        while True:
            fd = write_new(os.fspath(temporary), msgspec.json.encode(entry), borrow=True)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                temporary.rename(path)
                return path, fd
            except FileNotFoundError:  # swept as a leftover before it was locked
                os.close(fd)
            except BaseException:
                os.close(fd)
                temporary.unlink(missing_ok=True)
                raise

    def active(self) -> set[str]:
        """Workloads that an entry, of a live or a dead writer, is about."""
        names = (name.split("-") for name in os.listdir(self.directory) if name.endswith(".json"))
        return {parts[1] for parts in names if len(parts) == 3}

    def unfinished(self) -> list[tuple[Path, Entry]]:
        """Entries whose writer died."""
        found = []
        for name in sorted(os.listdir(self.directory)):
            if name.endswith(".json") and (entry := self._abandoned(self.directory / name)):
                found.append((self.directory / name, entry))
        return found

    def _abandoned(self, path: Path) -> Entry | None:
        with self._unheld(path) as data:
            if data is None:
                return None
            with contextlib.suppress(msgspec.DecodeError):
                return msgspec.json.decode(data, type=Entry)
            path.unlink(missing_ok=True)  # lost with the host's power: nothing it says is usable
            return None

    @staticmethod
    @contextlib.contextmanager
    def _unheld(path: Path) -> Iterator[bytes | None]:
        """The content of a file that no writer holds; None of one that is held or gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its writer may have finished, and removed it, since it was opened.
            yield os.read(fd, 1 << 16) if os.fstat(fd).st_nlink else None
        except BlockingIOError:
            yield None
        finally:
            os.close(fd)

    def sweep(self) -> None:
        """Remove entries whose writer was killed before they were complete."""
        for name in os.listdir(self.directory):
            if not name.endswith(".tmp"):
                continue
            with self._unheld(self.directory / name) as data:
                if data is not None:
                    (self.directory / name).unlink(missing_ok=True)
