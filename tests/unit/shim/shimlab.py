"""Plans for a busybox root, and a shim to run them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vmm.control import Control, spawn_shim
from vmm.control import frames as f
from vmm.model.errors import ShimLost
from vmm.model.launch import LaunchPlan, Op, encode_ops, op

#: How much more memory the programs may take when they are built with sanitizers.
LAXITY = 10 if "VMM_TEST_SANITIZED" in os.environ else 1

APPLETS = (
    "sh",
    "cat",
    "sleep",
    "echo",
    "true",
    "false",
    "yes",
    "head",
    "printf",
    "stty",
    "seq",
    "touch",
)


def make_root(path: Path) -> Path:
    for name in ("bin", "dev", "proc", "tmp"):
        (path / name).mkdir()
    shutil.copy("/bin/busybox", path / "bin/busybox")
    for name in APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    return path


def eventually(test: Callable[[], Any], seconds: float = 8.0) -> Any:
    """The first true value of ``test`` within ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = test()
        if value or time.monotonic() > end:
            assert value, "did not come true in time"
            return value
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """A process of that number runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


class Lab:
    def __init__(self, path: Path, programs: Path, root: Path) -> None:
        self.path, self.programs, self.root = path, programs, root
        self.run = path / "run"
        self.run.mkdir(mode=0o700)
        (path / "exec").mkdir()
        self._controls: list[Control] = []
        self._shims: set[int] = set()

    def plan(
        self,
        *argv: str,
        tty: bool = False,
        stdin: bool = False,
        once: bool = False,
        wait: bool = True,
        log: Sequence[str | int] = (),
        shim: Sequence[Op] = (),
        child: Sequence[Op] = (),
    ) -> LaunchPlan:
        log = log or ("json-file", str(self.path / "log"), 10 << 20, 3)
        return LaunchPlan(
            (
                op("id", "c0ffee" + "0" * 58),
                op("run-dir", str(self.run)),
                op("state", str(self.path / "state.json")),
                op("exec-dir", str(self.path / "exec")),
                op("events", str(self.path / "events.jsonl")),
                op("event-attrs", "name=lab"),
                op("log", *log),
                op("stdio", int(tty), int(stdin), int(once)),
                op("wait-start", int(wait)),
                op("boot-id", "this-boot"),
                *shim,
            ),
            (op("ns.new", "pid", "mount", "uts", "ipc", "net"),),
            (
                op("root.directory", str(self.root)),
                op("mount.fs", "proc", "proc", "/proc", "nosuid,nodev,noexec", ""),
                op("mount.fs", "tmpfs", "tmpfs", "/dev", "nosuid", "mode=755"),
                op("mount.fs", "tmpfs", "tmpfs", "/tmp", "nosuid", ""),
                op("mkdir", "/dev/pts", "0755", 0, 0),
                op("mount.fs", "devpts", "devpts", "/dev/pts", "nosuid,noexec", PTS),
                op("symlink", "pts/ptmx", "/dev/ptmx"),
                op("dev.node", "/dev/null", "c", 1, 3, "0666", 0, 0),
                op("dev.node", "/dev/zero", "c", 1, 5, "0666", 0, 0),
                op("root.pivot"),
                op("cwd", "/", "must"),
                *child,
                op("env", "PATH=/bin"),
                op("exec", *argv),
            ),
        )

    def spawn(self, *argv: str, fds: Sequence[int] = (), **options: Any) -> None:
        path = self.path / "plan"
        path.write_bytes(self.plan(*argv, **options).encode())
        spawn_shim(self.programs, path, fds)
        with contextlib.suppress(ShimLost):
            self._shims.add(self.status()["shim_pid"])

    def control(self) -> Control:
        control = Control.connect(str(self.run / "ctl.sock"))
        self._controls.append(control)
        return control

    def start(self, *argv: str, promise: bool = False, **options: Any) -> Control:
        """Spawn, attach to the output, ask for the exit, start."""
        self.spawn(*argv, **options)
        control = self.control()
        control.attach(stdin=bool(options.get("stdin") or options.get("tty")))
        control.expect_exit(promise=promise)
        control.start()
        return control

    def status(self) -> dict[str, Any]:
        """What the shim says now."""
        with Control.connect(str(self.run / "ctl.sock")) as control:
            found: dict[str, Any] = json.loads(control.status())
            return found

    def idle_memory_is(self, most: int) -> None:
        """Left alone, the shim has no more than so many KiB for itself; its program's pages are
        shared by all shims."""
        rollup = Path(f"/proc/{self.status()['shim_pid']}/smaps_rollup")
        found: list[int] = []
        end = time.monotonic() + 5
        while not found or (found[-1] > most and time.monotonic() < end):
            time.sleep(0.1)
            found.append(int(rollup.read_text().partition("Anonymous:")[2].split()[0]))
        assert found[-1] <= most, found

    def state(self) -> dict[str, Any]:
        """What is on disk."""
        found: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        return found

    def log(self, name: str = "log") -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(x) for x in (self.path / "events.jsonl").read_text().splitlines()]

    def close(self) -> None:
        for control in self._controls:
            control.close()
        for pid in self._shims:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        for pid in self._shims:
            eventually(partial(_dead, pid))


def _dead(pid: int) -> bool:
    return not alive(pid)


PTS = "newinstance,ptmxmode=0666,mode=0620"


def collect(control: Control, channel: int = 0, timeout: float = 20) -> tuple[bytes, bytes, int]:
    """Both streams of a channel up to its EXIT, and the exit code."""
    streams = {f.STDOUT: bytearray(), f.STDERR: bytearray()}
    end = time.monotonic() + timeout
    while True:
        frame = control.next_frame(max(0.0, end - time.monotonic()))
        assert frame is not None, f"no exit in {timeout} s; so far {streams}"
        if frame.channel != channel:
            continue
        if frame.type in streams:
            streams[frame.type] += frame.payload
        elif frame.type == f.EXIT:
            code = int(f.decode_args(frame.payload)[0])
            return bytes(streams[f.STDOUT]), bytes(streams[f.STDERR]), code


def read_until(control: Control, wanted: bytes, channel: int = 0, timeout: float = 8) -> bytes:
    """Standard output up to and with ``wanted``."""
    data, end = b"", time.monotonic() + timeout
    while wanted not in data:
        frame = control.next_frame(max(0.0, end - time.monotonic()))
        assert frame is not None, f"{wanted!r} did not come; so far {data!r}"
        if frame.type == f.STDOUT and frame.channel == channel:
            data += frame.payload
    return data


def command(*argv: str) -> bytes:
    """The operations of an exec."""
    return encode_ops((op("cwd", "/", "must"), op("env", "PATH=/bin"), op("exec", *argv)))
