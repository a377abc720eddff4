"""``vmm meta``: tag:value metadata that is kept with a workload's storage."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line, print_json
from vmm.model.errors import NotFound

Container = Annotated[str, typer.Argument(metavar="CONTAINER")]


def set_(
    container: Container,
    items: Annotated[list[str], typer.Argument(metavar="KEY=VALUE")],
) -> None:
    """Set metadata.

    All keys are set in one step; keys are [a-z0-9:._/-], values any text.

    Examples:
      vmm meta set web owner=alice lab:rack=12
    """
    from vmm.model.options import metadata

    changes: dict[str, str | None] = dict(metadata(items))
    context.engine().meta_change(container, changes)


def get(container: Container, key: Annotated[str, typer.Argument(metavar="KEY")]) -> None:
    """Print one value.

    Examples:
      vmm meta get web owner
    """
    values = context.engine().meta(container)
    if key not in values:
        raise NotFound("metadata key", f"{key} of {container}", f"vmm meta ls {container}")
    line(values[key])


def ls(
    container: Container,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object")] = False,
) -> None:
    """List all metadata of a workload.

    Examples:
      vmm meta ls web
      vmm meta ls --json web
    """
    values = dict(sorted(context.engine().meta(container).items()))
    if json:
        print_json(values)
        return
    for key, value in values.items():
        line(f"{key}={value}")


def rm(container: Container, keys: Annotated[list[str], typer.Argument(metavar="KEY")]) -> None:
    """Remove metadata.

    Examples:
      vmm meta rm web owner lab:rack
    """
    engine = context.engine()
    known = engine.meta(container)
    for key in keys:
        if key not in known:
            raise NotFound("metadata key", f"{key} of {container}", f"vmm meta ls {container}")
    engine.meta_change(container, dict.fromkeys(keys))
