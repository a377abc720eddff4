"""Images: list, bootstrap, import, tag, history, remove."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.context import for_each
from vmm.cli.listing import Filter, Format
from vmm.cli.output import line, note, print_rows

Image = Annotated[str, typer.Argument(metavar="IMAGE")]
NoTrunc = Annotated[bool, typer.Option("--no-trunc", help="Do not shorten")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only IDs")]
_HEADINGS = {
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
}


def familiar() -> Callable[[str], str]:
    """Shortens normalised references by the instance's default domain."""
    return context.engine().familiar


def images(
    repository: Annotated[str | None, typer.Argument(metavar="REPOSITORY[:TAG]")] = None,
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Accepted; there are no intermediate images")
    ] = False,
    digests: Annotated[bool, typer.Option("--digests", help="Show digests")] = False,
    filter: Filter = None,
    format: Format = None,
    no_trunc: NoTrunc = False,
    quiet: Quiet = False,
) -> None:
    """List images.

    Filters: dangling, label, reference, before, since.

    Examples:
      vmm images
      vmm images --filter dangling=true -q
      vmm images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
    """
    from vmm.engine.imageviews import FILTERS, matches, row_matches, rows
    from vmm.engine.views import parse_filters
    from vmm.model.human import parse_rfc3339

    filters = parse_filters(filter or (), FILTERS)
    if repository:
        filters.setdefault("reference", []).append(repository)
    found, short, now = context.engine().images(), familiar(), time.time_ns()
    found.sort(key=lambda image: parse_rfc3339(image.config.created), reverse=True)
    shown = [
        row
        for image in found
        if matches(image, filters, short, found)
        for row in rows(image, short, now, truncate=not no_trunc)
        if row_matches(row, filters.get("reference", ()))
    ]
    if quiet and not format:
        format = "{{.ID}}"
        shown = list({row["ID"]: row for row in shown}.values())
    digest = "\t{{.Digest}}" if digests else ""
    default = f"table {{{{.Repository}}}}\t{{{{.Tag}}}}{digest}\t{{{{.ID}}}}"
    print_rows(shown, format, default + "\t{{.CreatedSince}}\t{{.Size}}", _HEADINGS)


def bootstrap(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", help="Reference of the image (default NAME)")
    ] = None,
) -> None:
    """Make a base image from the host's package sources.

    NAME is debian:SUITE (by mmdebstrap) or busybox (of the package busybox-static).

    Examples:
      vmm image bootstrap debian:bookworm
      vmm image bootstrap busybox
    """
    image = context.engine().bootstrap(name, tag or name, note)
    line(image.id)


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE|-")],
    reference: Annotated[str | None, typer.Argument(metavar="REPOSITORY[:TAG]")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--change", "-c", metavar="list", help="Apply a Dockerfile instruction"),
    ] = None,
    message: Annotated[
        str, typer.Option("--message", "-m", help="Comment of the image's history")
    ] = "",
) -> None:
    """Make an image of a root file system in a tar archive.

    The archive may be compressed; - reads it from standard input.

    Examples:
      vmm image import rootfs.tar.gz alpine:3.20
      vmm image import -c 'CMD ["sh"]' - mine:latest < rootfs.tar
    """
    path = file if file == "-" else os.path.abspath(file)
    image = context.engine().import_image(path, reference or "", change or [], message)
    line(image.id)


def tag(
    source: Annotated[str, typer.Argument(metavar="SOURCE_IMAGE[:TAG]")],
    target: Annotated[str, typer.Argument(metavar="TARGET_IMAGE[:TAG]")],
) -> None:
    """Give an image another reference.

    Examples:
      vmm tag web:latest web:1.0
    """
    context.engine().tag(source, target)


def history(
    image: Image,
    format: Format = None,
    human: Annotated[
        bool, typer.Option("--human/--no-human", "-H", help="Sizes and dates as people read them")
    ] = True,
    no_trunc: NoTrunc = False,
    quiet: Quiet = False,
) -> None:
    """Show the history of an image.

    Examples:
      vmm history debian:bookworm
      vmm history --no-trunc --format '{{.CreatedBy}}' web
    """
    from vmm.engine.imageviews import history as steps

    engine = context.engine()
    found = engine.image(image)
    rows = steps(
        found, engine.layer_sizes(found), time.time_ns(), truncate=not no_trunc, human_units=human
    )
    created = "{{.CreatedSince}}" if human else "{{.CreatedAt}}"
    default = f"table {{{{.ID}}}}\t{created}\t{{{{.CreatedBy}}}}\t{{{{.Size}}}}\t{{{{.Comment}}}}"
    print_rows(rows, "{{.ID}}" if quiet and not format else format, default, _HEADINGS_HISTORY)


_HEADINGS_HISTORY = _HEADINGS | {"ID": "IMAGE"}


def rmi(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Remove all references, though it is in use")
    ] = False,
) -> int:
    """Remove one or more images.

    A reference is removed; with the last one go the image and the layers no other image needs.

    Examples:
      vmm rmi web:1.0
      vmm rmi -f $(vmm images -q --filter dangling=true)
    """
    engine = context.engine()
    return for_each(images, lambda name: "\n".join(engine.image_remove(name, force=force)))


def prune(
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Remove all unused images, not only dangling ones")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
) -> int:
    """Remove unused images.

    Examples:
      vmm image prune -f
      vmm image prune -a
    """
    from vmm.cli.confirm import confirm, reclaiming

    kind = "images without at least one workload" if all else "dangling images"
    if not confirm(f"This will remove all {kind}.", force):
        return 0
    engine = context.engine()
    chosen = engine.unused_images(everything=all)

    def remove(name: str) -> str:
        return "\n".join(engine.image_remove(name, force=all))

    with reclaiming("Images"):
        return for_each(chosen, remove, heading="Deleted Images:")
