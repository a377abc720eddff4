"""``vmm explain`` and ``vmm backends``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import align, line, print_json


def explain(
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    backend: Annotated[
        str, typer.Option("--backend", help="As this backend would do it (default its own)")
    ] = "",
) -> None:
    """Print what the backend makes of a workload.

    For a container that is its launch plan, one operation a line, in order; for a virtual
    machine also the libvirt domain.

    Examples:
      vmm explain web
      vmm explain --backend qemu web
    """
    line(context.engine().explain(container, backend).rstrip("\n"))


def backends(
    json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """List what each backend can do on this host.

    What is missing is listed with the reason.

    Examples:
      vmm backends
      vmm backends --json
    """
    found = context.engine().backends()
    if json:
        print_json({
            name: [{"Name": c.name, "Available": c.available, "Reason": c.reason} for c in caps]
            for name, caps in found
        })  # fmt: skip
        return
    rows = [("BACKEND", "CAPABILITY", "AVAILABLE", "REASON")]
    rows += [
        (name, c.name, "yes" if c.available else "no", c.reason)
        for name, caps in found
        for c in caps
    ]
    for text in align(rows):
        line(text.rstrip())
