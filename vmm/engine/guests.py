"""Guests that libvirt keeps: found again when documents are lost, swept when workloads are."""

from __future__ import annotations

import contextlib

from vmm.engine.context import Context
from vmm.model.errors import VmmError
from vmm.model.ids import short
from vmm.model.spec import WorkloadSpec


def kept(ctx: Context) -> list[WorkloadSpec]:
    """The specs of this instance that platforms keep; none is looked for before a guest was
    ever made here, nor where the platform does not answer."""
    from vmm.engine.backends import GUESTS

    found: dict[str, WorkloadSpec] = {}
    if not (ctx.root / "guest").is_dir():
        return []
    for name in GUESTS:
        with contextlib.suppress(VmmError):
            found.update((spec.id, spec) for spec in ctx.backend(name).known())
    return list(found.values())


def restore(ctx: Context) -> list[str]:
    """Write documents that are missing beside a guest's disk from what libvirt keeps; the ids."""
    restored = []
    for spec in kept(ctx):
        if not ctx.store.registered(spec.id) and (ctx.store.path(spec.id) / "disk.raw").exists():
            ctx.store.write(spec)
            restored.append(spec.id)
    return restored


def check(ctx: Context, *, repair: bool) -> list[str]:
    """Domains whose workload is gone."""
    from vmm.engine.launching import bare_input

    faults = []
    for spec in kept(ctx):
        if ctx.store.path(spec.id).exists() or spec.id in ctx.journal.active():
            continue
        faults.append(f"domain of {short(spec.id)} ({spec.name}): the workload is gone")
        if repair:
            given = bare_input(ctx, spec)
            ctx.backend(spec.backend).cleanup(given)
            ctx.backend(spec.backend).forget(given)
    return faults
