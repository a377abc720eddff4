"""``vmm cp``."""

from __future__ import annotations

import sys
from typing import Annotated, NamedTuple

import typer

from vmm.cli import context
from vmm.cli.output import note
from vmm.model.errors import UsageError


class Place(NamedTuple):
    """Where files come from or go to; ``container`` is "" for the host."""

    container: str
    path: str


def place(text: str) -> Place:
    """``CONTAINER:PATH``, a path of the host, or ``-``. One with a colon begins with ``/`` or ``.``
    to be the host's."""
    name, colon, path = text.partition(":")
    if not colon or not name or text.startswith(("/", ".")) or "/" in name:
        return Place("", text)
    return Place(name, path)


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC_PATH")],
    target: Annotated[str, typer.Argument(metavar="DEST_PATH")],
    archive: Annotated[
        bool, typer.Option("--archive", "-a", help="Keep all user and group numbers")
    ] = False,
    follow_link: Annotated[
        bool, typer.Option("--follow-link", "-L", help="Follow a symbolic link in SRC_PATH")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing")] = False,
) -> None:
    """Copy files between a workload and the host.

    One of the two is CONTAINER:PATH, the other a path of the host, or - for a tar archive on
    standard input or output. What is copied into a workload belongs to root, what is copied out
    to the caller, unless -a keeps the numbers; those in a tar archive are always kept. With
    SRC_PATH/. the content of a directory is copied, else the directory.

    Examples:
      vmm cp web:/etc/nginx/nginx.conf .
      vmm cp site/. web:/usr/share/nginx/html
      vmm cp web:/var/log - | tar t
    """
    left, right = place(source), place(target)
    if left.container and right.container:
        raise UsageError("copying between containers is not supported", "copy to the host first")
    if not left.container and not right.container:
        raise UsageError(
            "must specify at least one container source",
            "write CONTAINER:PATH for the one that is in a workload",
        )
    if left.container:
        size = _out(left, right.path, archive=archive, follow=follow_link)
    else:
        size = _in(left.path, right, archive=archive, follow=follow_link)
    if size is not None and not quiet and sys.stdout.isatty():
        from vmm.model.human import size as shown

        note(f"Successfully copied {shown(size)} to {target}")


def _out(source: Place, target: str, *, archive: bool, follow: bool) -> int | None:
    engine = context.engine()
    if target == "-":
        engine.tar_out(source.container, source.path, sys.stdout.buffer, follow=follow)
        return None
    return engine.copy_out(source.container, source.path, target, archive=archive, follow=follow)


def _in(source: str, target: Place, *, archive: bool, follow: bool) -> int | None:
    engine = context.engine()
    if source == "-":
        engine.tar_in(sys.stdin.buffer, target.container, target.path)
        return None
    return engine.copy_in(source, target.container, target.path, archive=archive, follow=follow)
