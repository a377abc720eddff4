"""Guests that libvirt keeps: found again when documents are lost, swept when workloads are."""

from __future__ import annotations

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.model.errors import CorruptStore, VmmError
from vmm.model.ids import short
from vmm.model.spec import WorkloadSpec


def kept(ctx: Context) -> tuple[dict[str, WorkloadSpec], dict[str, VmmError]]:
    """The specs of this instance that platforms keep, by id, and the backends that do not answer.
    None is asked before a guest was ever made here."""
    from vmm.engine.backends import GUESTS

    found: dict[str, WorkloadSpec] = {}
    silent: dict[str, VmmError] = {}
    if not (ctx.root / "guest").is_dir():
        return found, silent
    for name in GUESTS:
        try:
            found.update((spec.id, spec) for spec in ctx.backend(name).known())
        except VmmError as error:
            silent[name] = error
    return found, silent


def restore(ctx: Context) -> list[str]:
    """Write documents that are missing beside a guest's disk from what libvirt keeps; the ids."""
    restored = []
    for spec in kept(ctx)[0].values():
        if not ctx.store.registered(spec.id) and (ctx.store.path(spec.id) / "disk.raw").exists():
            ctx.store.write(spec)
            restored.append(spec.id)
    return restored


def check(ctx: Context, *, repair: bool) -> list[str]:
    """Domains whose workload is gone, and guests whose domain is gone or an older copy."""
    known, silent = kept(ctx)
    guests = _guests(ctx)
    asked = {spec.backend for spec in guests}
    faults = [f"backend {name}: {silent[name].message}" for name in sorted(asked & silent.keys())]
    for spec in known.values():
        if not ctx.store.path(spec.id).exists() and spec.id not in ctx.journal.active():
            faults.append(f"domain of {short(spec.id)} ({spec.name}): the workload is gone")
            if repair:
                forget(ctx, spec)
    for spec in guests:
        faults += _check_disk(ctx, spec)
        if spec.backend not in silent and known.get(spec.id) != spec:
            faults += _check_copy(ctx, spec, known.get(spec.id), repair)
    return faults


def _check_disk(ctx: Context, spec: WorkloadSpec) -> list[str]:
    """What a guest wrote cannot be made again."""
    try:
        if ctx.backend(spec.backend).storage == "disk" and ctx.store.state(spec.id).started:
            ctx.disks.verify(ctx.store.path(spec.id))
    except CorruptStore as error:
        return [error.message]
    return []


def _guests(ctx: Context) -> list[WorkloadSpec]:
    """The workloads of backends that keep a copy of the spec, without those being changed."""
    found = []
    for workload in ctx.store.ids():
        if workload in ctx.journal.active() or not ctx.store.registered(workload):
            continue
        try:
            spec = ctx.store.read(workload)
        except CorruptStore:
            continue
        if ctx.backend(spec.backend).keeps_spec:
            found.append(spec)
    return found


def forget(ctx: Context, spec: WorkloadSpec) -> None:
    """End what runs under this identity, and have its platform know no more of it."""
    given = launching.bare_input(ctx, spec)
    ctx.backend(spec.backend).cleanup(given)
    ctx.backend(spec.backend).forget(given)


def _check_copy(
    ctx: Context, spec: WorkloadSpec, copy: WorkloadSpec | None, repair: bool
) -> list[str]:
    """A command may have changed both since they were read: looked at again under the lock."""
    what = "an older copy of its spec" if copy else "lost behind vmm's back"
    fault = f"domain of {short(spec.id)} ({spec.name}): {what}"
    if not repair:
        return [fault]
    with ctx.lock(spec.id):
        if ctx.store.registered(spec.id):
            launching.record_change(ctx, ctx.store.read(spec.id))
    return [fault]
