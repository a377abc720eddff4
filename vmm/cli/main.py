"""The entry point and the one place where errors are printed."""

from __future__ import annotations

import os
import sys
from typing import Any

from vmm.model.errors import VmmError

_INTERRUPTED = 130
_BROKEN = 125


def main(argv: list[str] | None = None) -> int:
    """Run one command line; its exit code."""
    args = sys.argv[1:] if argv is None else argv
    _open_streams()
    try:
        code = _guarded(args)
        _say_notices()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone: that is how `vmm logs | head` ends.
        _silence_stdout()
        return 141
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _open_streams() -> None:
    """A standard stream the caller closed is the null device: what is opened later must not get
    its number, and then what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _guarded(args: list[str]) -> int:
    try:
        return _invoke(args)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except VmmError as error:
        if os.environ.get("VMM_DEBUG") == "1":
            raise
        from vmm.cli.output import report

        report(error)
        return error.exit_code
    except Exception as error:
        if os.environ.get("VMM_DEBUG") == "1":
            raise
        return _unexpected(error)


def _invoke(args: list[str]) -> int:
    os.environ.setdefault("TYPER_USE_RICH", "0")
    import typer

    from vmm.cli.app import root_group

    group = root_group()
    try:
        with group.make_context("vmm", list(args)) as ctx:
            return int(group.invoke(ctx) or 0)
    except typer.Exit as end:
        return int(end.exit_code)


def _unexpected(error: Exception) -> int:
    """One line; the parser's own errors explain themselves, others are faults of vmm."""
    from vmm.cli.output import note

    describe: Any = getattr(error, "format_message", None)
    if describe is not None:
        note(f"vmm: {describe()}")
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        note(f"vmm: {place}{error.strerror}\n  run it again with VMM_DEBUG=1 for the place")
    elif isinstance(error, UnicodeEncodeError):  # bytes of the command line (PEP 383)
        note(
            f"vmm: {error.object!r:.200} is not UTF-8\n"
            "  names, paths and values are kept in JSON: give them in UTF-8"
        )
    else:
        note(
            f"vmm: unexpected {type(error).__name__}: {error}\n"
            "  this is a fault of vmm; run it again with VMM_DEBUG=1 and report what it prints"
        )
    return _BROKEN


def _say_notices() -> None:
    from vmm.cli import context

    notices = context.notices()
    if notices:
        from vmm.cli.output import note

        for text in notices:
            note(f"vmm: {text}")


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
