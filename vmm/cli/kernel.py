"""``vmm kernel``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.context import for_each
from vmm.cli.listing import Format
from vmm.cli.output import line, note, print_rows

_TABLE = "table {{.Name}}\t{{.Architecture}}\t{{.Source}}\t{{.Size}}\t{{.Modules}}\t{{.Default}}"


def ls(
    format: Format = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only names")] = False,
) -> None:
    """List the kernels that guests can boot.

    The instance's own, the newest first, then those in the host's /boot. New guests boot
    the one with a star: that of the setting kernel, else the first one.

    Examples:
      vmm kernel ls
      vmm kernel ls --format '{{.Name}} {{.Path}}'
    """
    form = "{{.Name}}" if quiet and not format else format
    print_rows(context.engine().kernels(), form, _TABLE, {})


def add(
    file: Annotated[str, typer.Argument(metavar="FILE")],
    modules: Annotated[
        str, typer.Option("--modules", metavar="directory", help="Its /lib/modules/VERSION")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Name (default: its version)")] = "",
) -> None:
    """Add a kernel from a file.

    FILE is a vmlinuz, a vmlinux or a Debian package. Without --modules all that a guest needs
    must be built into the kernel.

    Examples:
      vmm kernel add linux-image-6.1.0-56-cloud-amd64.deb
      vmm kernel add --name mine --modules /lib/modules/6.1.0 bzImage
    """
    line(context.engine().kernel_add(file, modules=modules, name=name))


def fetch(
    package: Annotated[str | None, typer.Argument(metavar="[PACKAGE]")] = None,
    name: Annotated[str, typer.Option("--name", help="Name (default: its version)")] = "",
) -> None:
    """Get the distribution's kernel for virtual machines.

    The package is downloaded by the host's apt, which checks its signature, and only unpacked.
    Without PACKAGE it is the newest that linux-image-cloud-ARCHITECTURE stands for.

    Examples:
      vmm kernel fetch
      vmm kernel fetch --name generic linux-image-amd64
    """
    line(context.engine().kernel_fetch(package or "", name=name, say=note))


def rm(kernels: Annotated[list[str], typer.Argument(metavar="KERNEL")]) -> int:
    """Remove one or more kernels.

    One that a running guest has booted is not removed, nor are the host's.

    Examples:
      vmm kernel rm 6.1.0-56-cloud-amd64
    """
    return for_each(kernels, context.engine().kernel_remove)
