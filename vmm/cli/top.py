"""``vmm top``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line

#: Docker's table: a column takes this much at the least, three blanks between two (characters).
_WIDTH, _GAP = 20, 3


def top(
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    options: Annotated[list[str] | None, typer.Argument(metavar="OPTION...")] = None,
) -> None:
    """Display the running processes of a workload.

    The options are those of ps(1): -ef (the default), aux, -o with columns.

    Examples:
      vmm top web
      vmm top web -o pid,user,args
    """
    listing = context.engine().top(container, options or ())
    for text in table([listing.titles, *listing.rows]):
        line(text)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns; the last one is padded too, as Docker's is."""
    widths = [max(_WIDTH, _GAP + max(map(len, column))) for column in zip(*rows, strict=True)]
    return [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    ]
