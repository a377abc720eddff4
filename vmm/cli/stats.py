"""``vmm stats``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmm.cli import context
from vmm.cli.output import print_rows, write

if TYPE_CHECKING:
    from vmm.engine.statistics import Monitor

_TABLE = (
    "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}"
    "\t{{.PIDs}}"
)
_HEADINGS = {
    "ID": "CONTAINER ID",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
}
#: Seconds between two samples.
_INTERVAL = 1.0
#: Console_codes(4): to the upper left corner; erase to the end of the line, of the screen.
_HOME, _END_OF_LINE, _END_OF_SCREEN = b"\x1b[H", b"\x1b[K", b"\x1b[J"


def stats(
    containers: Annotated[list[str] | None, typer.Argument(metavar="CONTAINER")] = None,
    all: Annotated[bool, typer.Option("--all", "-a", help="Show stopped ones too")] = False,
    format: Annotated[
        str | None, typer.Option("--format", help="json, 'table TEMPLATE' or a Go template")
    ] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the first result and quit")
    ] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Do not shorten")] = False,
) -> None:
    """Display what workloads use.

    Anew every second; without names, of all that run.

    Examples:
      vmm stats
      vmm stats --no-stream --format json web
    """
    redraw = sys.stdout.isatty() and not no_stream
    with context.engine().stats(containers or (), everything=all) as monitor:
        monitor.sample()  # shares are of the time between two samples
        while True:
            time.sleep(_INTERVAL)
            shown = _show(monitor, format, truncate=not no_trunc, redraw=redraw)
            if no_stream or (containers and not shown):
                return


def _show(monitor: Monitor, format: str | None, *, truncate: bool, redraw: bool) -> int:
    """Print one sample; how many workloads it has."""
    from vmm.engine.statistics import row

    rows = [row(reading, truncate=truncate) for reading in monitor.sample()]
    if not redraw:
        print_rows(rows, format, _TABLE, _HEADINGS)
    else:
        text = _captured(rows, format)
        write(_HOME + text.replace(b"\n", _END_OF_LINE + b"\n") + _END_OF_SCREEN)
    sys.stdout.flush()
    return len(rows)


def _captured(rows: list[dict[str, str]], format: str | None) -> bytes:
    """What print_rows() prints, whole, so that a screen is drawn in one write."""
    import io

    screen, buffer = sys.stdout, io.BytesIO()
    sys.stdout = io.TextIOWrapper(buffer, write_through=True)
    try:
        print_rows(rows, format, _TABLE, _HEADINGS)
        sys.stdout.flush()
        return buffer.getvalue()
    finally:
        sys.stdout = screen
