"""The caller's standard streams, joined to a workload's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmm.model.errors import UsageError

if TYPE_CHECKING:
    from vmm.engine.sessions import Session

NAMES = frozenset({"stdin", "stdout", "stderr"})


def check_terminal(*, tty: bool, stdin: bool) -> None:
    """Refuse ``-it`` when standard input is not a terminal."""
    if tty and stdin and not os.isatty(0):
        raise UsageError("the input device is not a TTY", "drop -t, or run it from a terminal")


def size(*, tty: bool) -> tuple[int, int] | None:
    """Rows and columns that a workload's terminal begins with: those of the caller's."""
    if not tty:
        return None
    from vmm.control.terminal import terminal_size

    return terminal_size(1, 0)


def pump(
    session: Session,
    *,
    tty: bool,
    wanted: set[str],
    detach_keys: str | None = None,
    proxy_signals: bool = False,
) -> int | None:
    """Carry the streams until the end: the exit code, or None when the user detached."""
    from vmm.cli import context
    from vmm.control import terminal

    sys.stdout.flush()
    _tell_notices()
    keys = context.settings().detach_keys if detach_keys is None else detach_keys
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        code = terminal.pump(
            session.control,
            channel=session.channel,
            stdin_fd=0 if "stdin" in wanted else None,
            stdout_fd=1 if "stdout" in wanted else null,
            stderr_fd=2 if "stderr" in wanted else null,
            tty=tty,
            exec_id=session.exec_id,
            detach_keys=keys,
            proxy_signals=proxy_signals,
            starting=session.starting,
        )
    finally:
        os.close(null)
    if code is None:
        print("read escape sequence", file=sys.stderr)
    return code


def _tell_notices() -> None:
    from vmm.cli import context
    from vmm.cli.output import note

    for text in context.notices():
        note(f"vmm: {text}")
