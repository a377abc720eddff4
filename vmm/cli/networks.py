"""``vmm network``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.listing import Filter, Format
from vmm.cli.output import print_rows


def ls(
    filter: Filter = None,
    format: Format = None,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Do not shorten")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only IDs")] = False,
) -> None:
    """List networks.

    Filters: name, driver, id.

    Examples:
      vmm network ls
      vmm network ls --filter driver=bridge
    """
    from vmm.engine.imageviews import network_row
    from vmm.engine.views import parse_filters

    filters = parse_filters(filter or (), frozenset({"name", "driver", "id"}))

    def passes(name: str, driver: str, identity: str) -> bool:
        tests = {
            "name": lambda value: value in name,
            "driver": lambda value: value == driver,
            "id": lambda value: identity.startswith(value),
        }
        return all(any(map(tests[key], values)) for key, values in filters.items())

    rows = [
        network_row(network, truncate=not no_trunc)
        for network in context.engine().networks()
        if passes(network.name, network.driver, network.id)
    ]
    form = "{{.ID}}" if quiet and not format else format
    default = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
    print_rows(rows, form, default, {"ID": "NETWORK ID"})
