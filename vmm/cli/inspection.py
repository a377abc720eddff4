"""``vmm inspect`` and the inspect commands of each kind of object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmm.cli import context
from vmm.cli.output import print_inspected, report
from vmm.model.errors import NotFound, UsageError, VmmError

if TYPE_CHECKING:
    from vmm.engine.engine import Engine

Names = Annotated[list[str], typer.Argument(metavar="NAME")]
Format = Annotated[
    str | None, typer.Option("--format", "-f", help="json or a Go template: '{{.State.Status}}'")
]
Finder = Callable[["Engine", str], dict[str, Any]]


def _container(engine: Engine, name: str) -> dict[str, Any]:
    from vmm.engine import views

    return views.inspect(engine.view(name))


def _image(engine: Engine, name: str) -> dict[str, Any]:
    from vmm.cli.images import familiar
    from vmm.engine import imageviews

    return imageviews.inspect(engine.image(name), familiar())


def _volume(engine: Engine, name: str) -> dict[str, Any]:
    from vmm.engine import imageviews

    return imageviews.volume_inspect(*engine.volume(name))


def _network(engine: Engine, name: str) -> dict[str, Any]:
    from vmm.engine import imageviews

    return imageviews.network_inspect(engine.network(name), engine.workloads())


_KINDS: dict[str, Finder] = {
    "container": _container,
    "image": _image,
    "volume": _volume,
    "network": _network,
}


def _find(engine: Engine, name: str, finders: Sequence[Finder]) -> dict[str, Any]:
    """The first kind that has the name; a malformed name is one that no kind has."""
    for finder in finders[:-1]:
        try:
            return finder(engine, name)
        except (NotFound, UsageError):
            continue
    if len(finders) == 1:
        return finders[0](engine, name)
    try:
        return finders[-1](engine, name)
    except (NotFound, UsageError):
        raise NotFound("object", name, "vmm ps -a and vmm images list what there is") from None


def _show(names: list[str], form: str | None, finders: Sequence[Finder]) -> int:
    engine = context.engine()
    found, code = [], 0
    for name in names:
        try:
            found.append(_find(engine, name, finders))
        except VmmError as error:
            report(error)
            code = 1
    print_inspected(found, form)
    return code


def inspect(
    names: Names,
    format: Format = None,
    type: Annotated[
        str | None, typer.Option("--type", help="Only this kind: container, image, volume, network")
    ] = None,
) -> int:
    """Show workloads, images, volumes and networks as JSON.

    Examples:
      vmm inspect web
      vmm inspect -f '{{.State.Status}} {{.NetworkSettings.IPAddress}}' web
    """
    if type is not None and type not in _KINDS:
        raise UsageError(
            f'"{type:.80}" is not a valid value for --type', "use " + ", ".join(_KINDS)
        )
    return _show(names, format, [_KINDS[type]] if type else list(_KINDS.values()))


def inspect_containers(names: Names, format: Format = None) -> int:
    """Show workloads as JSON.

    Examples:
      vmm container inspect -f '{{json .Mounts}}' web
    """
    return _show(names, format, [_container])


def inspect_images(names: Names, format: Format = None) -> int:
    """Show images as JSON.

    Examples:
      vmm image inspect -f '{{.Config.Cmd}}' debian:bookworm
    """
    return _show(names, format, [_image])


def inspect_volumes(names: Names, format: Format = None) -> int:
    """Show volumes as JSON.

    Examples:
      vmm volume inspect -f '{{.Mountpoint}}' data
    """
    return _show(names, format, [_volume])


def inspect_networks(names: Names, format: Format = None) -> int:
    """Show networks as JSON.

    Examples:
      vmm network inspect bridge
    """
    return _show(names, format, [_network])
