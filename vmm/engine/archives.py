"""Processes that carry file streams out of a workload or into it (LAUNCH.md, "File streams").

In a running workload it is an exec; in the root of one that does not run, a plan of its own whose
only process is the copy.  What comes out is believed no further than its reader checks it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmm.control import frames
from vmm.control.client import Control, parse_exit
from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.runstep import drop_step, launched
from vmm.engine.status import LIVE, observe
from vmm.engine.users import LIMIT, Reader
from vmm.model.backend import CompileInput, WorkloadPaths
from vmm.model.errors import Conflict, LaunchError, VmmError
from vmm.model.filestream import FILE, CopyFailed, StreamReader
from vmm.model.ids import new_id, short
from vmm.model.spec import Log, Network, Process, Resources, Restart, WorkloadSpec

#: What is kept of the line on standard error (bytes).
_MESSAGE = 4096
#: What is gathered before it is sent (bytes).
_CHUNK = frames.MAX_PAYLOAD
#: Seconds for a copy that was cut off to end.
_LEAVING = 2.0


class Pipe:
    """Both ends of a copying process: ``read`` what it says, ``write`` what it takes."""

    def __init__(self, control: Control, channel: int, place: str) -> None:
        self._control = control
        self._channel = channel
        #: What errors name.
        self._place = place
        self._out = bytearray()
        self._in = bytearray()
        self._said = bytearray()
        self.code: int | None = None

    def read(self, size: int) -> bytes:
        """The next bytes, ``size`` at most; none at the end."""
        while not self._out and self.code is None:
            self._next(None)
        data = bytes(self._out[:size])
        del self._out[:size]
        return data

    def write(self, data: bytes) -> None:
        """Pass bytes on, some later; VmmError when the process ended before it took them all."""
        self._in += data
        if len(self._in) >= _CHUNK:
            self._send()

    def close(self) -> None:
        """The end of what is written."""
        self._send()
        if self.code is None:
            self._control.write_stdin(b"", self._channel)

    def _send(self) -> None:
        data, self._in = bytes(self._in), bytearray()
        while self.code is None and self._next(0):
            pass
        if self.code is not None:
            raise self._failure()
        if data:
            self._control.write_stdin(data, self._channel)

    def _next(self, timeout: float | None) -> bool:
        """Take in one frame; False when none came in time."""
        frame = self._control.next_frame(timeout)
        if frame is None:
            return False
        if frame.channel != self._channel:
            return True
        if frame.type == frames.STDOUT:
            self._out += frame.payload
        elif frame.type == frames.STDERR:
            self._said += frame.payload[: _MESSAGE - len(self._said)]
        elif frame.type == frames.EXIT:
            self.code = parse_exit(frame).code
        elif frame.type == frames.ERROR:
            self.code = 1
        return True

    def finish(self) -> None:
        """Wait for the end; VmmError, with what the process said, unless it ended well."""
        self._in.clear()
        self.drain(None)
        if self.code:
            raise self._failure()

    def drain(self, timeout: float | None) -> None:
        """Drop what still comes until the end, or until ``timeout`` seconds passed."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.code is None:
            if not self._next(None if end is None else max(0.0, end - time.monotonic())):
                return
            self._out.clear()

    def _failure(self) -> VmmError:
        text = bytes(self._said).decode("utf-8", "replace").strip()
        why = text.partition("\n")[0] or "the copying process was ended"
        return VmmError(f"{self._place}: {why}")


@contextlib.contextmanager
def pipe(
    ctx: Context, spec: WorkloadSpec, direction: str, path: str, *, follow: bool = False
) -> Iterator[Pipe]:
    """A process that writes ``path`` ("get"), or reads into it ("put"), for the block's time."""
    status = observe(ctx, spec.id).status
    if status == "restarting":
        raise Conflict(
            f"Container {spec.name} is restarting, wait until the container is running",
            "vmm ps shows it",
        )
    if status == "paused":
        raise Conflict(
            f"Container {spec.name} is paused, unpause the container first",
            f"vmm unpause {spec.name}",
        )
    made = running_pipe if status == "running" else stopped_pipe
    with made(ctx, spec, direction, path, follow) as opened:
        yield opened


@contextlib.contextmanager
def running_pipe(
    ctx: Context, spec: WorkloadSpec, direction: str, path: str, follow: bool
) -> Iterator[Pipe]:
    """The copy as a further process of the running workload."""
    given = launching.bare_input(ctx, spec)
    operations = ctx.backend(spec.backend).compile_archive(given, direction, path, follow)
    exec_id = new_id()
    with launching.connect(ctx, spec.id) as control:
        channel, _ = control.exec(exec_id, operations, stdin=direction == "put")
        opened = Pipe(control, channel, f"{spec.name}:{path}")
        try:
            yield opened
        finally:
            if opened.code is None:
                _cut_off(ctx, spec.id, exec_id, opened)
            # No instance that anybody started: nothing of it is kept for inspection.
            (ctx.store.path(spec.id) / "exec" / f"{exec_id}.json").unlink(missing_ok=True)


def _cut_off(ctx: Context, workload: str, exec_id: str, opened: Pipe) -> None:
    """End a copy of which no more is wanted; the request has a connection of its own, since this
    one's may wait behind data."""
    with contextlib.suppress(VmmError):
        with launching.connect(ctx, workload) as other:
            other.exec_signal(exec_id, 9)
        opened.drain(_LEAVING)


def reader(ctx: Context, spec: WorkloadSpec) -> Reader:
    """Reads small files of a running workload whose root no path of the host leads to."""

    def read(path: str) -> str:
        with running_pipe(ctx, spec, "get", f"/{path}", True) as opened:
            stream = StreamReader(opened.read)
            try:
                entry = next(iter(stream), None)
            except CopyFailed:
                return ""
            if entry is None or entry.type != FILE:
                return ""
            if entry.size > LIMIT:
                raise LaunchError(f"/{path} of the workload is larger than {LIMIT} bytes")
            return b"".join(iter(stream.read, b"")).decode("utf-8", "replace")

    return read


@contextlib.contextmanager
def stopped_pipe(
    ctx: Context, spec: WorkloadSpec, direction: str, path: str, follow: bool
) -> Iterator[Pipe]:
    """The copy as the only process of a launch over the workload's root and mounts; the workload
    is locked meanwhile, so that nothing starts over the same root."""
    with ctx.lock(spec.id):
        if observe(ctx, spec.id).status in LIVE:
            raise Conflict(f"Container {spec.name} was just started", "copy again")
        identity = new_id()
        with ctx.journal.begin("step", identity) as undo:
            undo.push(lambda: drop_step(ctx, identity))
            given = _one_off(ctx, spec, identity)
            plan = ctx.backend(spec.backend).archive_plan(given, direction, path, follow)
            with launched(given, plan, stdin=direction == "put") as control:
                yield Pipe(control, 0, f"{spec.name}:{path}")
            drop_step(ctx, identity)


def _one_off(ctx: Context, spec: WorkloadSpec, identity: str) -> CompileInput:
    """The workload's files under another identity, without limits, network or command."""
    directory = ctx.run_dir / short(identity)
    directory.mkdir(mode=0o700)
    (directory / "exec").mkdir(mode=0o700)
    given = launching.compile_input(ctx, spec)
    alone = msgspec.structs.replace(
        spec,
        id=identity,
        process=Process(cmd=("copy",), stdin_open=True, stdin_once=True),
        resources=Resources(devices=spec.resources.devices),
        network=Network(mode="none", hostname=spec.network.hostname),
        restart=Restart(),
        health=None,
        log=Log(driver="none"),
        sysctls={},
        init=False,
        auto_remove=False,
        stop_timeout=0,
    )
    return msgspec.structs.replace(
        given,
        spec=alone,
        paths=_paths(ctx, spec.id, identity, directory),
        root=msgspec.structs.replace(given.root, volatile=False),
        endpoint=None,
        seccomp=b"",
        reaper=(),
        relay=(),
    )


def _paths(ctx: Context, workload: str, identity: str, directory: Path) -> WorkloadPaths:
    """Everything in the run directory, but the files that were generated for the workload."""
    theirs = ctx.paths(workload)
    empty = directory / "empty"
    empty.touch(mode=0o644)

    def made(path: str) -> str:
        return path if os.path.exists(path) else str(empty)

    return msgspec.structs.replace(
        ctx.paths(identity),
        directory=str(directory),
        state=str(directory / "state.json"),
        events=str(directory / "events.jsonl"),
        hosts=made(theirs.hosts),
        hostname=made(theirs.hostname),
        resolv_conf=made(theirs.resolv_conf),
    )
