"""Changing the limits and the restart policy of a workload, whether it runs or not."""

from __future__ import annotations

import contextlib

import msgspec

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, observe, shim_alive
from vmm.model.errors import Conflict, UsageError, VmmError
from vmm.model.request import UpdateRequest
from vmm.model.spec import Resources, WorkloadSpec


def update(ctx: Context, reference: str, request: UpdateRequest) -> None:
    """Write the new limits down, then apply them; what cannot be applied changes nothing.

    Killed in between, the next command applies what is written: see ``apply``.
    """
    recover(ctx)
    with ctx.workload(reference) as workload:
        before = ctx.store.read(workload)
        after = changed(before, request)
        ctx.backend(after.backend).check(after, ctx.facts(after.backend))
        with ctx.journal.begin("update", workload) as undo:
            undo.push(lambda: _take_back(ctx, before))
            ctx.store.write(after)
            apply(ctx, after)
            launching.record_change(ctx, after)
    ctx.events.append("container", "update", workload, name=after.name, image=after.image)


def apply(ctx: Context, spec: WorkloadSpec) -> None:
    """Make a workload have the limits of its spec, if it runs; idempotent (the lock is held)."""
    running = observe(ctx, spec.id).status in LIVE
    given = msgspec.structs.replace(launching.bare_input(ctx, spec), spec=spec)
    operations = ctx.backend(spec.backend).update(given, running)
    if running and shim_alive(ctx.store.state(spec.id)):
        with launching.connect(ctx, spec.id) as control:
            control.update(spec.restart.policy, spec.restart.max_retries, operations)


def _take_back(ctx: Context, spec: WorkloadSpec) -> None:
    ctx.store.write(spec)
    with contextlib.suppress(VmmError):  # it ended, or bears neither the old limits nor the new
        apply(ctx, spec)


def changed(spec: WorkloadSpec, request: UpdateRequest) -> WorkloadSpec:
    """The spec with the limits asked for; UsageError for those that contradict what stays."""
    resources = _resources(spec.resources, request)
    restart = spec.restart if request.restart is None else request.restart
    if spec.auto_remove and restart.policy != "no":
        raise Conflict(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
            "create it anew without --rm",
        )
    return msgspec.structs.replace(spec, resources=resources, restart=restart)


def _resources(before: Resources, request: UpdateRequest) -> Resources:
    asked = {
        "memory": request.memory,
        "memory_swap": request.memory_swap,
        "nano_cpus": request.nano_cpus,
        "cpu_shares": request.cpu_shares,
        "cpuset_cpus": request.cpuset_cpus,
        "pids_limit": request.pids_limit,
    }
    chosen = {name: value for name, value in asked.items() if value is not None}
    after = msgspec.structs.replace(before, **chosen)
    swap, memory = after.memory_swap, after.memory
    if swap is not None and memory is None:
        raise UsageError(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
            "add --memory",
        )
    if swap is not None and memory is not None and 0 <= swap < memory:
        raise UsageError(
            "Memory limit should be smaller than already set memoryswap limit, "
            "update the memoryswap at the same time",
            "add --memory-swap: memory plus swap; -1 is unlimited swap",
        )
    return after
