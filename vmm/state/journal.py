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


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What was begun: ``create``, ``start``, ``remove``, … on which workload."""

    action: str
    workload: str
    pid: int = 0


class Undo:
    """Steps to take back, run last first when the block fails."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def push(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def run(self) -> None:
        while self._steps:
            with contextlib.suppress(Exception):
                self._steps.pop()()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.run()


class Journal:
    """The journal directory of an instance."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def begin(self, action: str, workload: str) -> Iterator[None]:
        """Record the change while the block runs; an exception means it was undone in order."""
        path = self.directory / f"{action}-{workload}-{os.urandom(4).hex()}.json"
        temporary = path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            entry = Entry(action=action, workload=workload, pid=os.getpid())
            os.write(fd, msgspec.json.encode(entry))
            temporary.rename(path)
            yield
            path.unlink()
        except Exception:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def unfinished(self) -> list[tuple[Path, Entry]]:
        """Entries whose writer died."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            entry = self._abandoned(path)
            if entry:
                found.append((path, entry))
        return found

    def _abandoned(self, path: Path) -> Entry | None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return msgspec.json.decode(os.read(fd, 1 << 16), type=Entry)
        except BlockingIOError:
            return None
        except msgspec.DecodeError:  # killed between rename and a full disk: nothing was begun
            path.unlink(missing_ok=True)
            return None
        finally:
            os.close(fd)

    def recover(self, how: Callable[[Entry], None]) -> list[Entry]:
        """Finish or undo each unfinished entry by ``how``, then forget it."""
        done = []
        for path, entry in self.unfinished():
            how(entry)
            path.unlink(missing_ok=True)
            done.append(entry)
        return done
