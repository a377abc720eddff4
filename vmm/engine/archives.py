"""Processes that carry file streams out of a workload or into it (LAUNCH.md, "File streams").

Each is an exec: in the workload if it runs, else in its root and mounts, which a process that does
nothing holds open.  What comes out is believed no further than its reader checks it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vmm.control import frames
from vmm.control.client import Control, parse_exit
from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.recovery import recover
from vmm.engine.runstep import drop_step, launched
from vmm.engine.status import LIVE, observe, seen
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
#: Bytes of memory of a guest that is booted for copies: kernel, hard links (64 MiB), page cache.
_MEMORY = 256 << 20


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


class Files:
    """The files of one workload: each copy is an exec in what ``connect`` leads to."""

    def __init__(self, ctx: Context, given: CompileInput, connect: Callable[[], Control]) -> None:
        self._backend = ctx.backend(given.spec.backend)
        self._given = given
        self._connect = connect

    @contextlib.contextmanager
    def pipe(self, direction: str, path: str, *, follow: bool = False) -> Iterator[Pipe]:
        """A process that writes ``path`` ("get"), or reads into it ("put"), for the block's
        time."""
        given = self._given
        operations = self._backend.compile_archive(given, direction, path, follow)
        exec_id = new_id()
        with self._connect() as control:
            channel, _ = control.exec(exec_id, operations, stdin=direction == "put")
            opened = Pipe(control, channel, f"{given.spec.name}:{path}")
            try:
                yield opened
            finally:
                if opened.code is None:
                    self._cut_off(exec_id, opened)
                # No instance that anybody started: nothing of it is kept for inspection.
                Path(given.paths.directory, "exec", f"{exec_id}.json").unlink(missing_ok=True)

    def _cut_off(self, exec_id: str, opened: Pipe) -> None:
        """End a copy of which no more is wanted; the request has a connection of its own, since
        this one's may wait behind data."""
        with contextlib.suppress(VmmError):
            with self._connect() as other:
                other.exec_signal(exec_id, 9)
            opened.drain(_LEAVING)


@contextlib.contextmanager
def files(ctx: Context, spec: WorkloadSpec) -> Iterator[Files]:
    """A workload's files for the block's time, whether it runs or not."""
    state = seen(ctx, spec.id)
    if state.status == "restarting":
        raise Conflict(
            f"Container {spec.name} is restarting, wait until the container is running",
            "vmm ps shows it",
        )
    if state.status == "paused" and not ctx.backend(spec.backend).copies_paused:
        why = state.error or f"backend {spec.backend}: nothing runs in it, a copy neither"
        raise Conflict(f"Container {spec.name} is paused: {why}", f"vmm unpause {spec.name}")
    if state.status in ("running", "paused"):
        yield running(ctx, spec)
    else:
        with _woken(ctx, spec) as found:
            yield found


def running(ctx: Context, spec: WorkloadSpec) -> Files:
    """Those of a workload that runs."""
    given = launching.bare_input(ctx, spec)
    return Files(ctx, given, lambda: launching.connect(ctx, spec.id))


def reader(ctx: Context, spec: WorkloadSpec) -> Reader:
    """Reads small files of a running workload whose root no path of the host leads to."""
    found = running(ctx, spec)

    def read(path: str) -> str:
        with found.pipe("get", f"/{path}", follow=True) as opened:
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
def _woken(ctx: Context, spec: WorkloadSpec) -> Iterator[Files]:
    """Those of one that does not run: its root and mounts without its process, as long as the
    block lasts. The workload is locked meanwhile, so that nothing starts over the same root."""
    recover(ctx)  # a copy that was killed may still hold the root
    with ctx.lock(spec.id):
        if observe(ctx, spec.id).status in LIVE:
            raise Conflict(f"Container {spec.name} was just started", "copy again")
        theirs, identity = launching.compile_input(ctx, spec), new_id()
        with ctx.journal.begin("step", identity, backend=spec.backend) as undo:
            undo.push(lambda: drop_step(ctx, identity, spec.backend))
            given = _one_off(ctx, spec, theirs, identity)
            backend = ctx.backend(spec.backend)
            plan = backend.archive_plan(given)
            backend.prepare(given, plan)
            with launched(given, plan, stdin=True) as control:
                yield Files(ctx, given, lambda: Control.connect(f"{given.paths.run}/ctl.sock"))
                _end(control)
            drop_step(ctx, identity, spec.backend)


def _end(control: Control) -> None:
    """Let go of what waits for the end of its input, and wait until all is on the disk."""
    control.write_stdin(b"")
    while (frame := control.next_frame()) and frame.type != frames.EXIT:
        pass
    control.wait_closed()


def _one_off(ctx: Context, spec: WorkloadSpec, theirs: CompileInput, identity: str) -> CompileInput:
    """The workload's files under another identity, without limits, network or command."""
    directory = ctx.run_dir / short(identity)
    directory.mkdir(mode=0o700)
    (directory / "exec").mkdir(mode=0o700)
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
        theirs,
        spec=alone,
        stored=None,
        paths=_paths(ctx, spec.id, identity, directory),
        root=msgspec.structs.replace(theirs.root, volatile=False),
        endpoint=None,
        seccomp=b"",
        guest_memory=_MEMORY,
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
