"""Freezing a workload's processes where they stand, and letting them go on."""

from __future__ import annotations

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.status import halted, seen
from vmm.model.errors import Conflict


def pause(ctx: Context, reference: str) -> None:
    """Freeze every process; Conflict when it does not run or is paused already."""
    row = ctx.index.lookup(reference)
    status = seen(ctx, row.id).status
    if status == "paused":
        raise Conflict(
            f"Container {row.id} is already paused", f"let it go on: vmm unpause {row.name}"
        )
    if status == "restarting":
        raise Conflict(
            f"Container {row.id} is restarting, wait until the container is running",
            f"vmm ps shows it; or end it: vmm stop {row.name}",
        )
    if status != "running":
        raise Conflict(f"Container {row.id} is not running", f"start it: vmm start {row.name}")
    with launching.connect(ctx, row.id) as control:
        control.pause()


def unpause(ctx: Context, reference: str) -> None:
    """Let a paused workload go on; Conflict when it is not paused."""
    row = ctx.index.lookup(reference)
    if seen(ctx, row.id).status != "paused":
        raise Conflict(f"Container {row.id} is not paused", "vmm ps -a shows its status")
    unknown = halted(ctx, row.id)
    with launching.connect(ctx, row.id) as control:
        if unknown:  # its shim does not know
            control.pause()
        control.unpause()
