"""``vmm system check``: every fault of an instance, and the mending of what can be mended."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from vmm.engine import guests, launching, lifecycle, recovery
from vmm.engine.context import Context
from vmm.engine.status import LIVE, mend, observe, shim_alive
from vmm.model.errors import CorruptStore, NotFound
from vmm.model.ids import HEX64, short
from vmm.model.state import State

#: Nanoseconds after which the reaper of a workload that ended is not waited for.
_REAPED = 10 * 10**9
#: Temporary files of atomic writes name the process that made them.
_TEMPORARY = re.compile(r".+\.([0-9]+)\.tmp\Z")


def check(ctx: Context, *, repair: bool) -> list[str]:
    """Every fault found; with ``repair``, what can be mended is."""
    faults = _check_index(ctx, repair)
    if faults and not repair:
        return faults  # without an index nothing else can be told
    faults += _check_killed(ctx, repair)
    faults += guests.check_documents(ctx, repair=repair)
    faults += _check_workloads(ctx, repair)
    faults += _check_runs(ctx, repair)
    faults += _check_cgroups(ctx, repair)
    faults += guests.check(ctx, repair=repair)
    faults += _check_files(ctx, repair)
    faults += ctx.images.check()
    faults += ctx.disks.check()
    faults += ctx.network.warnings()
    if repair:
        _sweep_stores(ctx)
    if repair and faults:
        ctx.rebuild_index()
        if any(ctx.network.warnings()):
            ctx.bridge()
    return faults


def _check_index(ctx: Context, repair: bool) -> list[str]:
    try:
        ctx.index.verify()
    except CorruptStore as error:
        if repair:
            ctx.rebuild_index()
        return [error.message]
    return []


def _check_killed(ctx: Context, repair: bool) -> list[str]:
    """What commands left that were killed."""
    faults = [
        f"unfinished {entry.action} of {short(entry.workload)}: its command was killed"
        for _, entry in ctx.journal.unfinished()
    ]
    builds = recovery.abandoned_builds(ctx)
    faults += [f"build {name}: left over by a killed build" for name in sorted(builds)]
    if repair:
        recovery.recover(ctx)
    return faults


def _check_workloads(ctx: Context, repair: bool) -> list[str]:
    faults = []
    # In this order: a workload that is being created is either busy or, later, registered.
    stored, busy = ctx.store.ids(), ctx.journal.active() | guests.restorable(ctx).keys()
    names = {row.id: row.name for row in ctx.index.rows()}
    for workload in stored:
        if workload in busy:
            continue
        if ctx.store.registered(workload):
            faults += _check_one(ctx, workload, names.get(workload), repair)
        elif ctx.store.path(workload).is_dir():
            faults.append(f"workload {short(workload)}: left over, it has no workload.json")
            if repair:
                with ctx.lock(workload):
                    lifecycle.purge(ctx, workload, volumes=False)
    gone = (names.keys() | ctx.index.claimants()) - set(ctx.store.ids()) - ctx.journal.active()
    faults += [f"workload {short(i)}: in the index, but not in storage" for i in sorted(gone)]
    return faults


def _check_one(ctx: Context, workload: str, name: str | None, repair: bool) -> list[str]:
    shown = f"workload {short(workload)}"
    faults = [] if name else [f"{shown}: in storage, but not in the index"]
    try:
        spec = ctx.store.read(workload)
        if name and name not in (spec.name, workload):
            faults.append(f"{shown}: its name is {spec.name}, in the index {name}")
    except CorruptStore as error:
        faults.append(error.message)
    try:
        recorded, state = ctx.store.state(workload), observe(ctx, workload)
    except CorruptStore as error:
        if repair:
            with ctx.lock(workload):
                mend(ctx, workload)
        return [*faults, error.message]
    if state.status in LIVE and not shim_alive(state):
        faults.append(f"{shown}: it runs on, but its shim is lost")
        if repair:
            launching.adopt(ctx, workload)
    if recorded.status != state.status:
        faults.append(f"{shown}: recorded as {recorded.status}: {state.error}")
        if repair:
            lifecycle.reap(ctx, workload)
    if _unremoved(ctx, workload, state):
        faults.append(f"{shown}: it ended and was to be removed (--rm)")
        if repair:
            lifecycle.reap(ctx, workload)
    return faults


def _unremoved(ctx: Context, workload: str, state: State) -> bool:
    """Whether the reaper of a workload that removes itself failed, and is not only still at it."""
    if state.status != "exited" or shim_alive(state) or time.time_ns() - state.finished < _REAPED:
        return False
    with contextlib.suppress(CorruptStore):
        return ctx.store.read(workload).auto_remove
    return False


def _check_runs(ctx: Context, repair: bool) -> list[str]:
    """Run-time directories that no live shim of a workload owns."""
    faults = []
    directories = [d for d in sorted(ctx.run_dir.iterdir()) if re.match("[0-9a-f]{12}\\Z", d.name)]
    busy = {short(workload) for workload in ctx.journal.active()}
    owners = {short(workload): workload for workload in ctx.store.ids()}
    for directory in directories:
        owner = owners.get(directory.name)
        if directory.name in busy or (owner and _runs(ctx, owner)) or _listens(directory):
            continue
        if not directory.is_dir():
            continue
        faults.append(f"run directory {directory}: no shim lives there")
        if repair and owner:
            _clear(ctx, owner)
        elif repair:
            lifecycle.remove_tree(os.fspath(directory))
    return faults


def _runs(ctx: Context, workload: str) -> bool:
    """Whether the workload has a shim; one whose state is damaged is taken to have one."""
    try:
        return shim_alive(ctx.store.state(workload))
    except CorruptStore:
        return True


def _clear(ctx: Context, workload: str) -> None:
    with ctx.lock(workload):
        if ctx.store.registered(workload) and not _runs(ctx, workload):
            lifecycle.clear(ctx, workload)


def _listens(directory: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        try:
            sock.connect(os.fspath(directory / "ctl.sock"))
        except OSError:
            return False
    return True


def _check_cgroups(ctx: Context, repair: bool) -> list[str]:
    """Control groups of workloads that do not run."""
    from vmm.engine.launching import bare_input

    groups = set(_groups(ctx))
    busy, stored = ctx.journal.active(), set(ctx.store.ids())
    faults = []
    for workload in sorted(groups - busy):
        if workload in stored and _runs(ctx, workload):
            continue
        if workload not in set(_groups(ctx)):
            continue
        faults.append(f"cgroup of {short(workload)}: the workload does not run")
        if repair and workload in stored:
            _clear(ctx, workload)
        elif repair:
            ctx.backend("container").cleanup(bare_input(ctx, lifecycle.remains(workload)))
    return faults


def _groups(ctx: Context) -> Iterator[str]:
    for hierarchy in ctx.facts("container").cgroups:
        parent = Path(hierarchy.mountpoint) / ctx.settings.mark
        if parent.is_dir():
            yield from (name for name in os.listdir(parent) if HEX64.match(name))


def _check_files(ctx: Context, repair: bool) -> list[str]:
    """Temporary files of killed processes, and locks of workloads that are gone."""
    found = [path for path in _temporaries(ctx) if _is_orphan(path)]
    faults = [f"{path}: left over by a killed command" for path in found]
    if repair:
        for path in found:
            path.unlink(missing_ok=True)
        for path in (ctx.run_dir / "locks").iterdir():
            if HEX64.match(path.name) and _is_lock_of_none(ctx, path.name):
                path.unlink(missing_ok=True)
    return faults


def _temporaries(ctx: Context) -> Iterator[Path]:
    for place in ("", "networks", "images", "layers", "cache", "build-cache", "reserve"):
        yield from (ctx.root / place).glob("*.tmp")
    yield from ctx.run_dir.glob("*.tmp")
    for place in ("workloads", "volumes"):
        yield from (ctx.root / place).glob("*/*.tmp")


def _is_orphan(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    return bool(match) and not os.path.exists(f"/proc/{match[1] if match else 0}")


def _is_lock_of_none(ctx: Context, workload: str) -> bool:
    try:
        ctx.index.lookup(workload)
    except NotFound:
        return not ctx.store.path(workload).exists() and workload not in ctx.journal.active()
    return False


def _sweep_stores(ctx: Context) -> None:
    """Remove what killed commands left of layers, blobs and volumes, none of which has a name."""
    with ctx.lock("images"), ctx.images.index.edit():
        ctx.layers.prune_temporary()
        ctx.images.blobs.prune_temporary()
    ctx.volumes.prune_temporary()
    ctx.disks.prune()
