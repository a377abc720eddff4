"""Images: made, imported, removed; with regard to the workloads that use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from vmm.engine.context import Context
from vmm.engine.maintenance import images_in_use
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, shown
from vmm.model.errors import UsageError
from vmm.model.image import ContainerConfig, Image
from vmm.model.platform import architecture
from vmm.model.request import BuildRequest

if TYPE_CHECKING:
    from vmm.engine.build_events import Progress


def remove(ctx: Context, reference: str, *, force: bool) -> list[str]:
    """Remove a reference, and with the last one the image; Docker's lines of what was done."""
    recover(ctx)
    with ctx.lock("images"):
        running = [row.name for row in ctx.index.rows() if shown(ctx, row.id).status in LIVE]
        lines = list(
            ctx.images.remove(reference, force=force, in_use=images_in_use(ctx), running=running)
        )
        ctx.disks.prune()
        return lines


def import_image(
    ctx: Context, path: str, reference: str, changes: list[str], message: str
) -> Image:
    """An image of one layer from a root file system's tar; ``-`` is standard input."""
    config = _changed(changes)
    recover(ctx)
    with ctx.lock("images", shared=True):
        if path == "-":
            return ctx.images.import_tar(
                sys.stdin.buffer, reference, config=config, message=message
            )
        if not os.path.exists(path):
            raise UsageError(f"open {path}: no such file or directory")
        if os.path.isdir(path):
            return ctx.images.load_layout(path, reference)
        return ctx.images.import_tar(path, reference, config=config, message=message)


def _changed(changes: list[str]) -> ContainerConfig:
    """``--change``: Dockerfile instructions applied to an empty configuration."""
    if not changes:
        return ContainerConfig()
    from vmm.engine.build import apply_changes

    return apply_changes(ContainerConfig(), changes)


def bootstrap(ctx: Context, name: str, reference: str, output: Callable[[str], None]) -> Image:
    """Make a base image from the host's own package archive."""
    from vmm.image.bootstrap import bootstrap
    from vmm.ports.runner import HostRunner

    recover(ctx)
    with ctx.lock("images", shared=True):
        return bootstrap(name, HostRunner(), ctx.images, reference=reference, say=output)


def build(ctx: Context, request: BuildRequest, progress: Progress) -> str:
    """Build an image from a Dockerfile; its id."""
    from vmm.engine.build import Builder
    from vmm.engine.runstep import run_step

    recover(ctx)
    builder = Builder(
        ctx.images,
        ctx.layers,
        partial(run_step, ctx),
        ctx.root,
        progress,
        architecture=architecture(os.uname().machine),
        environ=os.environ,
    )
    return builder.build(request).id
