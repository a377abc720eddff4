"""Start a shim."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence
from time import monotonic

from vmm.model.errors import HostError, LaunchError
from vmm.ports.space import exhausted

#: Seconds a shim may take to set itself up.
READY_TIMEOUT = 30.0


def spawn_shim(
    libexec: str | os.PathLike[str], plan_path: str | os.PathLike[str], fds: Sequence[int] = ()
) -> None:
    """Start ``vmm-shim`` for a plan and return when its control socket listens.

    ``fds`` are inherited under the same numbers (the plan's ``helper-fds``). Raises LaunchError
    with the failing step and exit code.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = _spawn(os.path.join(libexec, "vmm-shim"), os.fspath(plan_path), writer, fds)
        finally:
            os.close(writer)
        line = _first_line(reader)
    finally:
        os.close(reader)
    _, status = os.waitpid(pid, 0)
    if line != "ready":
        error = launch_error(line, os.waitstatus_to_exitcode(status))
        full = exhausted(plan_path) if os.strerror(errno.ENOSPC) in error.message else None
        raise full or error


def _spawn(program: str, plan: str, report: int, fds: Sequence[int]) -> int:
    """dup2 onto itself clears close-on-exec (posix_spawn_file_actions_adddup2(3p))."""
    keep = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (*fds, report)]
    try:
        return os.posix_spawn(
            program,
            [program, plan, str(report)],
            os.environ,
            file_actions=keep,
            setsigmask=(),
        )
    except OSError as error:
        raise HostError(
            f"{program}: {error.strerror}", "install vmm's native programs (make -C native)"
        ) from None


def _first_line(reader: int) -> str:
    """What the shim reports; empty when it died or took too long."""
    data, end = b"", monotonic() + READY_TIMEOUT
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while b"\n" not in data:
        if not poller.poll(max(0.0, end - monotonic()) * 1000):
            raise LaunchError(f"vmm-shim was not ready within {READY_TIMEOUT:g} s")
        chunk = os.read(reader, 4096)
        if not chunk:
            break
        data += chunk
    return data.decode(errors="replace").partition("\n")[0]


def launch_error(line: str, status: int = 0) -> LaunchError:
    """The error a report line ``error CODE TAB STEP TAB MESSAGE`` stands for."""
    if not line.startswith("error "):
        return LaunchError(f"vmm-shim ended with {status} before it was ready")
    code, step, message = (*line.removeprefix("error ").split("\t", 2), "", "")[:3]
    return LaunchError(message or line, step=step, code=int(code) if code.isdigit() else 125)
