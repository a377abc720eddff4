"""Kernels for guests: listed, added, fetched, removed; with regard to the guests that use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.engine.context import Context
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, shown
from vmm.guest.kernels import Kernel
from vmm.guest.roots import KERNEL_NAME
from vmm.model.errors import Conflict, HostError, UsageError

if TYPE_CHECKING:
    from vmm.guest.kernels import KernelStore


def rows(ctx: Context) -> list[dict[str, Any]]:
    """Every kernel as ``vmm kernel ls`` shows it; the one that guests boot is marked."""
    store = _store(ctx)
    try:
        default = store.choose(ctx.settings.kernel).name
    except HostError:
        default = ""
    return [_row(kernel, default) for kernel in store.list()]


def add(ctx: Context, file: str, *, modules: str = "", name: str = "") -> str:
    """Take a kernel file with its modules, or a Debian package; the kernel's name."""
    recover(ctx)
    if file.endswith(".deb"):
        from vmm.guest.packages import add_package
        from vmm.ports.runner import HostRunner

        if modules:
            raise UsageError("--modules: a package brings its own modules")
        return add_package(_store(ctx), HostRunner(), Path(file), name=name).name
    return _store(ctx).add(file, modules, name).name


def fetch(ctx: Context, package: str, *, name: str = "", say: Callable[[str], None]) -> str:
    """Get a kernel package of the host's distribution; the kernel's name."""
    from vmm.guest.packages import fetch
    from vmm.ports.runner import HostRunner

    recover(ctx)
    return fetch(_store(ctx), HostRunner(), package, name=name, say=say).name


def remove(ctx: Context, name: str) -> None:
    """Remove a kernel that no running guest has booted."""
    recover(ctx)
    users = _users(ctx, name)
    if users:
        raise Conflict(
            f"kernel {name} is in use by {', '.join(users)}", "stop these guests first (vmm stop)"
        )
    _store(ctx).remove(name)
    ctx.disks.prune()


def _store(ctx: Context) -> KernelStore:
    return ctx.disks.kernels


def _row(kernel: Kernel, default: str) -> dict[str, Any]:
    return {
        "Name": kernel.name,
        "Version": kernel.version,
        "Architecture": kernel.architecture,
        "Source": kernel.source,
        "Size": _size(kernel.path),
        "Modules": "yes" if kernel.modules else "no",
        "Default": "*" if kernel.name == default else "",
        "Path": kernel.path,
    }


def _size(path: str) -> str:
    from vmm.model.human import size

    try:
        return size(os.stat(path).st_size)
    except FileNotFoundError:
        return "missing"


def _users(ctx: Context, name: str) -> list[str]:
    """Names of the live guests that have booted the kernel."""
    found = []
    for row in ctx.index.rows():
        with contextlib.suppress(FileNotFoundError):
            booted = (ctx.store.path(row.id) / KERNEL_NAME).read_text()
            if booted == name and shown(ctx, row.id).status in LIVE:
                found.append(row.name)
    return sorted(found)
