"""``vmm logs``."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from vmm.cli import context


def logs(
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the output")] = False,
    since: Annotated[
        str, typer.Option("--since", help="Show logs since a time, or the last 10m, 1h30m")
    ] = "",
    tail: Annotated[
        str, typer.Option("--tail", "-n", help="Number of lines to show (default all)")
    ] = "all",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Show the time of each line")
    ] = False,
    until: Annotated[str, typer.Option("--until", help="Show logs before a time")] = "",
) -> None:
    """Show the logs of a workload.

    What it wrote to standard error goes to standard error.

    Examples:
      vmm logs --tail 20 web
      vmm logs -f -t --since 10m web
    """
    now = time.time_ns()
    lines = context.engine().logs(
        container,
        follow=follow,
        tail=_tail(tail),
        since=_moment(since, now),
        until=_moment(until, now),
    )
    previous = ""
    for entry in lines:
        if entry.stream != previous:
            sys.stdout.flush()
            previous = entry.stream
        text = f"{entry.time} {entry.log}" if timestamps else entry.log
        target = sys.stderr if entry.stream == "stderr" else sys.stdout
        target.buffer.write(text.encode("utf-8", "surrogateescape"))
        if follow or entry.stream == "stderr":
            target.buffer.flush()


def _tail(text: str) -> int | None:
    from vmm.model.options import integer

    if text == "all":
        return None
    value = integer(text, "--tail", low=-(1 << 31), high=1 << 31)
    return None if value < 0 else value


def _moment(text: str, now: int) -> str:
    """RFC 3339 UTC with all nine digits, so that texts compare as times do."""
    from vmm.model.options import timestamp

    if not text:
        return ""
    seconds, fraction = divmod(timestamp(text, now), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"
