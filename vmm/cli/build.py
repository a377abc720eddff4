"""``vmm build``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line, write
from vmm.model.errors import UsageError

Texts = list[str] | None


def build(
    path: Annotated[str, typer.Argument(metavar="PATH")],
    build_arg: Annotated[
        Texts, typer.Option("--build-arg", metavar="list", help="Set build-time variables")
    ] = None,
    file: Annotated[
        str, typer.Option("--file", "-f", help="The Dockerfile (default PATH/Dockerfile)")
    ] = "",
    label: Annotated[
        Texts, typer.Option("--label", metavar="list", help="Set labels of the image")
    ] = None,
    network: Annotated[
        str, typer.Option("--network", help="Network of RUN: bridge, none, host (default bridge)")
    ] = "bridge",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do not use the cache")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the image's ID")] = False,
    tag: Annotated[
        Texts, typer.Option("--tag", "-t", metavar="list", help="Name, and maybe tag (name:tag)")
    ] = None,
) -> None:
    """Build an image from a Dockerfile.

    PATH is the directory whose files COPY and ADD take.

    Examples:
      vmm build -t web:latest .
      vmm build -t web -f web.Dockerfile --build-arg VERSION=2 --no-cache src
    """
    from vmm.engine.build_events import Event, render
    from vmm.model.options import network_mode, pairs
    from vmm.model.request import BuildRequest

    request = BuildRequest(
        context=_directory(path),
        dockerfile=os.path.abspath(file) if file else "",
        tags=tuple(tag or ()),
        build_args=_build_args(build_arg or []),
        labels=pairs(label or (), "label"),
        no_cache=no_cache,
        network=network_mode(network),
        quiet=quiet,
    )

    def progress(event: Event) -> None:
        if not quiet:
            write(render(event))
            sys.stdout.flush()

    image = context.engine().build(request, progress)
    if quiet:
        line(image)


def _directory(path: str) -> str:
    if path == "-" or "://" in path or path.startswith("git@"):
        raise UsageError(f"build context {path!r:.200} is not supported", "give a local directory")
    if not os.path.isdir(path):
        raise UsageError(
            f'unable to prepare context: path "{path:.200}" not found'
            if not os.path.exists(path)
            else f'unable to prepare context: path "{path:.200}" is not a directory',
            "give the directory that holds the Dockerfile",
        )
    return os.path.abspath(path)


def _build_args(items: list[str]) -> dict[str, str | None]:
    """``KEY=VALUE``; a bare ``KEY`` takes the caller's variable, if it has one."""
    result: dict[str, str | None] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key:
            raise UsageError(f"invalid build argument: {item!r:.80}", "use KEY=VALUE")
        result[key] = value if equals else os.environ.get(key)
    return result
