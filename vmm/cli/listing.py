"""``vmm ps`` and ``vmm port``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line, note, print_rows
from vmm.model.errors import NotFound, UsageError

_TABLE = (
    "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
)
_HEADINGS = {
    "ID": "CONTAINER ID",
    "RunningFor": "CREATED",
    "CreatedAt": "CREATED AT",
    "LocalVolumes": "LOCAL VOLUMES",
}
Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", "-f", metavar="filter", help="Show only those that match key=value"),
]
Format = Annotated[
    str | None, typer.Option("--format", help="json, 'table TEMPLATE' or a Go template")
]


def ps(
    all: Annotated[bool, typer.Option("--all", "-a", help="Show stopped ones too")] = False,
    filter: Filter = None,
    format: Format = None,
    last: Annotated[
        str, typer.Option("--last", "-n", metavar="int", help="Show the n last created")
    ] = "-1",
    latest: Annotated[bool, typer.Option("--latest", "-l", help="Show the last created")] = False,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Do not shorten")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only IDs")] = False,
) -> None:
    """List workloads.

    Filters: id, name, status, label, ancestor, exited, volume, network, backend.

    Examples:
      vmm ps -a
      vmm ps --filter status=exited --format 'table {{.Names}}\\t{{.Status}}'
    """
    from vmm.engine.views import matches, parse_filters, ps_row
    from vmm.model.options import integer

    filters = parse_filters(filter or ())
    count = 1 if latest else integer(last, "--last", low=-1)
    engine = context.engine()
    everything = all or count > 0 or bool({"status", "exited"} & set(filters))
    chosen = [v for v in engine.workloads(everything=everything) if matches(v, filters)]
    chosen = chosen[:count] if count > 0 else chosen
    if quiet and not format:
        format = "{{.ID}}"
    now = time.time_ns()
    rows = [ps_row(v, now, truncate=not no_trunc) for v in chosen]
    print_rows(rows, format, _TABLE, _HEADINGS)
    for warning in [] if quiet else engine.warnings():
        note(f"WARNING: {warning}")


def port(
    container: Annotated[str, typer.Argument(metavar="CONTAINER")],
    private: Annotated[str | None, typer.Argument(metavar="PORT[/PROTOCOL]")] = None,
) -> None:
    """List the published ports of a workload.

    With a port, only where that one is published.

    Examples:
      vmm port web
      vmm port web 80/tcp
    """
    from vmm.engine.views import port_lines

    lines = port_lines(context.engine().view(container))
    if private is None:
        for inside, outside in lines:
            line(f"{inside} -> {outside}")
        return
    number, _, protocol = private.partition("/")
    if not number.isdigit():
        raise UsageError(f"Invalid port: {private!r:.80}", "use PORT or PORT/PROTOCOL: 80/tcp")
    key = f"{number}/{protocol or 'tcp'}"
    found = [outside for inside, outside in lines if inside == key]
    if not found:
        raise NotFound("public port", f"{key} published for {container}", "vmm port lists them")
    for outside in found:
        line(outside)
