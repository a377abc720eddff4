"""``vmm volume``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.context import for_each
from vmm.cli.listing import Filter, Format
from vmm.cli.output import line, print_rows
from vmm.model.errors import UsageError

_HEADINGS = {"Name": "VOLUME NAME"}


def create(
    volume: Annotated[str | None, typer.Argument(metavar="VOLUME")] = None,
    driver: Annotated[
        str, typer.Option("--driver", "-d", help="Volume driver: local (the default)")
    ] = "local",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="list", help="Set labels")
    ] = None,
    name: Annotated[str, typer.Option("--name", hidden=True)] = "",
    opt: Annotated[
        list[str] | None,
        typer.Option("--opt", "-o", metavar="map", help="Refused: local volumes have none"),
    ] = None,
) -> None:
    """Create a volume.

    Without a name it gets a random one.

    Examples:
      vmm volume create data
      vmm volume create --label owner=web www
    """
    from vmm.model.ids import check_name, new_id
    from vmm.model.options import pairs

    if driver != "local":
        raise UsageError(f"volume driver {driver!r:.80} is not supported", "use --driver local")
    if opt:
        raise UsageError("--opt is not supported", "local volumes are directories without options")
    if volume and name:
        raise UsageError("conflicting options: cannot specify a volume-name through both --name"
                         " and as a positional arg")  # fmt: skip
    chosen = volume or name
    if chosen:
        check_name(chosen, "volume name")
    record = context.engine().volume_create(chosen or new_id(), pairs(label or (), "label"))
    line(record.name)


def ls(
    filter: Filter = None,
    format: Format = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only names")] = False,
) -> None:
    """List volumes.

    Filters: name, label, dangling.

    Examples:
      vmm volume ls
      vmm volume ls --filter label=owner=web -q
    """
    from vmm.engine.imageviews import volume_row
    from vmm.engine.views import parse_filters

    filters = parse_filters(filter or (), frozenset({"name", "label", "dangling"}))
    engine = context.engine()
    dangling = {_boolean(value) for value in filters.pop("dangling", ())}
    used = engine.used_volumes() if dangling else ()
    rows = []
    for record in engine.volumes():
        labels = {*record.labels, *(f"{k}={v}" for k, v in record.labels.items())}
        if all(any(part in record.name for part in values) if key == "name"
               else set(values) <= labels for key, values in filters.items()):  # fmt: skip
            if dangling and (record.name not in used) not in dangling:
                continue
            rows.append(volume_row(record, engine.volume(record.name)[1]))
    form = "{{.Name}}" if quiet and not format else format
    print_rows(rows, form, "table {{.Driver}}\t{{.Name}}", _HEADINGS)


def _boolean(value: str) -> bool:
    if value not in {"true", "false", "1", "0"}:
        raise UsageError(f"invalid filter 'dangling={value:.80}'", "use true or false")
    return value in {"true", "1"}


def rm(
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="A volume that does not exist is no error")
    ] = False,
) -> int:
    """Remove one or more volumes.

    A volume that a workload uses is not removed.

    Examples:
      vmm volume rm data www
    """
    engine = context.engine()
    return for_each(volumes, lambda name: engine.volume_remove(name, force=force))


def prune(
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Remove unused named volumes too")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
) -> None:
    """Remove unused volumes.

    Without --all only anonymous ones.

    Examples:
      vmm volume prune -f
    """
    from vmm.cli.confirm import confirm, reclaiming

    kind = "local" if all else "anonymous local"
    if not confirm(f"This will remove {kind} volumes not used by at least one workload.", force):
        return
    with reclaiming("Local Volumes"):
        removed = context.engine().volume_prune(everything=all)
        if removed:
            line("Deleted Volumes:")
        for name in removed:
            line(name)
        if removed:
            line("")
