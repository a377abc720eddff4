"""Guests that libvirt keeps: found again when documents are lost, swept when workloads are."""

from __future__ import annotations

import contextlib

import msgspec

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.status import LIVE, shim_alive
from vmm.model.errors import CorruptStore, VmmError
from vmm.model.ids import short
from vmm.model.spec import WorkloadSpec, public


def kept(ctx: Context) -> tuple[dict[str, WorkloadSpec], dict[str, VmmError]]:
    """The public parts of the specs of this instance that platforms keep, by id, and the backends
    that do not answer. None is asked before a guest was ever made here."""
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


def check_documents(ctx: Context, *, repair: bool) -> list[str]:
    """Guests whose documents are missing beside their disks, and can be restored: from the copy
    that is kept of them, or what their platform keeps."""
    faults = []
    for workload, spec in restorable(ctx).items():
        faults.append(f"workload {short(workload)}: its workload.json is lost, but a copy is kept")
        if repair and spec:
            with ctx.lock(workload):
                if not ctx.store.registered(workload):
                    ctx.store.write(_whole(ctx, spec))
    return faults


def restorable(ctx: Context) -> dict[str, WorkloadSpec | None]:
    """Guests whose disks are there without documents, and not in any change, by id: their specs
    as they are kept; None while a platform that may keep it does not answer."""
    changing = ctx.journal.active() | {entry.workload for _, entry in ctx.journal.unfinished()}
    lost = [
        workload
        for workload in ctx.store.ids()
        if workload not in changing
        and not ctx.store.registered(workload)
        and ctx.disks.holds(ctx.store.path(workload))
    ]
    if not lost:
        return {}
    known, silent = kept(ctx)
    specs = {workload: ctx.copies.read(workload) or known.get(workload) for workload in lost}
    return {workload: spec for workload, spec in specs.items() if spec or silent}


def _whole(ctx: Context, spec: WorkloadSpec) -> WorkloadSpec:
    """A public part alone is made whole by what the image says."""
    if spec != public(spec):
        return spec
    process = spec.process
    with contextlib.suppress(VmmError):
        config = ctx.images.resolve(spec.image_id).config.config
        process = msgspec.structs.replace(
            process,
            entrypoint=tuple(config.entrypoint or ()),
            cmd=tuple(config.cmd or ()),
            env=tuple(config.env),
        )
    ctx.notices.append(
        f"{spec.name}: command and environment are lost, and are the image's now; "
        f"see it by vmm inspect {spec.name} before it is started"
    )
    return msgspec.structs.replace(spec, process=process)


def check(ctx: Context, *, repair: bool) -> list[str]:
    """Domains whose workload is gone, and guests whose domain is gone or an older copy."""
    known, silent = kept(ctx)
    faults = _check_copies(ctx, repair)
    guests = _guests(ctx)
    asked = {spec.backend for spec in guests}
    faults += [f"backend {name}: {silent[name].message}" for name in sorted(asked & silent.keys())]
    for spec in known.values():
        if not ctx.store.path(spec.id).exists() and spec.id not in ctx.journal.active():
            faults.append(f"domain of {short(spec.id)} ({spec.name}): the workload is gone")
            if repair:
                forget(ctx, spec)
    for spec in guests:
        faults += _check_disk(ctx, spec) + _check_orphan(ctx, spec, repair)
        stale = known.get(spec.id) != public(spec) or ctx.copies.read(spec.id) != spec
        if spec.backend not in silent and stale:
            faults += _check_copy(ctx, spec, known.get(spec.id), repair)
    return faults


def _check_copies(ctx: Context, repair: bool) -> list[str]:
    """Copies of the specs of workloads that are gone."""
    faults = []
    for workload in ctx.copies.ids():
        if not ctx.store.path(workload).exists() and workload not in ctx.journal.active():
            faults.append(f"workload {short(workload)}: it is gone, but a copy of its spec is kept")
            if repair:
                ctx.copies.remove(workload)
    return faults


def _check_disk(ctx: Context, spec: WorkloadSpec) -> list[str]:
    """What a guest wrote cannot be made again."""
    try:
        if ctx.backend(spec.backend).storage == "disk" and ctx.store.state(spec.id).started:
            ctx.disks.verify(ctx.store.path(spec.id))
    except CorruptStore as error:
        return [error.message]
    return []


def _check_orphan(ctx: Context, spec: WorkloadSpec, repair: bool) -> list[str]:
    """An emulator whose workload does not run: its start was given up while libvirt was at it."""
    if not _orphaned(ctx, spec):
        return []
    fault = f"workload {short(spec.id)} ({spec.name}): its guest runs, but nobody keeps it"
    if not repair:
        return [fault]
    with ctx.lock(spec.id):
        if _orphaned(ctx, spec):
            ctx.backend(spec.backend).cleanup(launching.bare_input(ctx, spec))
    return [fault]


def _orphaned(ctx: Context, spec: WorkloadSpec) -> bool:
    backend = ctx.backend(spec.backend)
    if _kept_going(ctx, spec.id) or not backend.alive(launching.bare_input(ctx, spec)):
        return False
    # It may have been started in order between the two looks.
    return not _kept_going(ctx, spec.id)


def _kept_going(ctx: Context, workload: str) -> bool:
    """Whether it may run: by its record, or as a command is at it; true where that is damaged."""
    with contextlib.suppress(CorruptStore):
        state = ctx.store.state(workload)
        changing = workload in ctx.journal.active()
        return state.status in LIVE or shim_alive(state) or changing
    return True


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
    ctx.backend(spec.backend).cleanup(launching.bare_input(ctx, spec))
    launching.forget(ctx, spec)


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
