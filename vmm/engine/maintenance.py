"""Looking after an instance: info, df, check and repair, rebuild, prune, boot."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

from vmm import __version__
from vmm.engine import lifecycle
from vmm.engine.context import Context
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, observe, settle, shim_alive
from vmm.model.backend import HostFacts
from vmm.model.errors import CorruptStore, HostError, VmmError
from vmm.model.ids import short
from vmm.ports.files import locked


def info(ctx: Context) -> dict[str, Any]:
    """What this instance and host are, in Docker's field names where it has them."""
    from vmm.engine import backends

    rows = ctx.index.rows()
    statuses = [observe(ctx, row.id).status for row in rows]
    uname = os.uname()
    facts = ctx.facts("container")
    return {
        "ID": ctx.settings.instance,
        "Containers": len(rows),
        "ContainersRunning": statuses.count("running"),
        "ContainersPaused": statuses.count("paused"),
        "ContainersStopped": len([s for s in statuses if s not in LIVE]),
        "Images": len(ctx.images.list()),
        "Driver": ctx.settings.storage_driver,
        "VmmRootDir": str(ctx.root),
        "RunDir": str(ctx.run_dir),
        "LoggingDriver": ctx.settings.log_driver,
        "CgroupVersion": str(cgroup_version(facts)),
        "KernelVersion": uname.release,
        "OSType": uname.sysname.lower(),
        "Architecture": uname.machine,
        "NCPU": facts.cpus,
        "Name": uname.nodename,
        "ServerVersion": __version__,
        "Backends": {
            name: {"available": caps[0].available, "reason": caps[0].reason}
            for name, caps in backends.probe()
            if name != "network"
        },
        "Settings": dict(ctx.settings.sources),
        "Warnings": warnings(ctx),
    }


def cgroup_version(facts: HostFacts) -> int:
    """The version that manages memory here: on a hybrid host that is 1."""
    with_memory = [h.version for h in facts.cgroups if "memory" in h.controllers]
    return min(with_memory, default=2)


def warnings(ctx: Context) -> list[str]:
    """What stands in the way of workloads on this host."""
    found = list(ctx.network.warnings())
    with contextlib.suppress(HostError):
        found += filter(None, [ctx.network.detect_blocking()])
    unfinished = ctx.journal.unfinished()
    if unfinished:
        found.append(
            f"{len(unfinished)} unfinished change(s) of killed commands; "
            "the next change settles them, or: vmm system check --repair"
        )
    return found


def df(ctx: Context) -> list[dict[str, Any]]:
    """Bytes in use by kind; a layer that images share is counted once."""
    images = ctx.images.list()
    rows = ctx.index.rows()
    used = {ctx.store.read(r.id).image_id for r in rows if ctx.store.registered(r.id)}
    layers = {chain for image in images for chain in image.chain_ids}
    kept = {chain for image in images if image.id in used for chain in image.chain_ids}
    image_bytes = sum(ctx.layers.size(chain) for chain in layers)
    running = [row for row in rows if observe(ctx, row.id).status in LIVE]
    writable = {row.id: ctx.layers.usage(str(ctx.store.path(row.id) / "upper")) for row in rows}
    idle = sum(size for i, size in writable.items() if i not in {r.id for r in running})
    volumes = ctx.volumes.list()
    in_use = volumes_in_use(ctx)
    sizes = {volume.name: ctx.volumes.size(volume.name) for volume in volumes}
    free_volumes = sum(size for name, size in sizes.items() if name not in in_use)
    unused = image_bytes - sum(ctx.layers.size(chain) for chain in kept)
    return [
        _row("Images", len(images), len(used), image_bytes, unused),
        _row("Containers", len(rows), len(running), sum(writable.values()), idle),
        _row("Local Volumes", len(volumes), len(in_use), sum(sizes.values()), free_volumes),
    ]


def _row(kind: str, total: int, active: int, size: int, reclaimable: int) -> dict[str, Any]:
    return {
        "Type": kind, "TotalCount": total, "Active": active, "Size": size,
        "Reclaimable": reclaimable,
    }  # fmt: skip


def volumes_in_use(ctx: Context) -> dict[str, list[str]]:
    """Volume names with the workloads that mount them."""
    found: dict[str, list[str]] = {}
    for row in ctx.index.rows():
        if not ctx.store.registered(row.id):
            continue
        try:
            spec = ctx.store.read(row.id)
        except CorruptStore:
            continue
        for mount in spec.mounts:
            if mount.kind == "volume":
                found.setdefault(mount.source, []).append(spec.name)
    return found


def images_in_use(ctx: Context) -> dict[str, list[str]]:
    """Image ids with the workloads made from them."""
    found: dict[str, list[str]] = {}
    for row in ctx.index.rows():
        if ctx.store.registered(row.id):
            found.setdefault(ctx.store.read(row.id).image_id, []).append(row.name)
    return found


def check(ctx: Context, *, repair: bool) -> list[str]:
    """Every fault found; with ``repair``, what can be mended is."""
    faults = [
        f"unfinished {entry.action} of {short(entry.workload)}: its command was killed"
        for _, entry in ctx.journal.unfinished()
    ]
    if repair:
        recover(ctx)
    faults += _check_workloads(ctx, repair)
    faults += _check_builds(ctx, repair)
    faults += _check_runs(ctx, repair)
    faults += ctx.images.check()
    faults += ctx.network.warnings()
    if repair and faults:
        rebuild(ctx)
        if any(ctx.network.warnings()):
            ctx.bridge()
    return faults


def _check_workloads(ctx: Context, repair: bool) -> list[str]:
    faults = []
    known = {row.id for row in ctx.index.rows()}
    busy = {entry.stem.split("-")[1] for entry in ctx.journal.directory.glob("*.json")}
    for workload in ctx.store.ids():
        if workload in busy:
            continue
        if not ctx.store.registered(workload):
            faults.append(f"workload {short(workload)}: left over, it has no workload.json")
            if repair:
                ctx.store.delete(workload)
            continue
        faults += _check_one(ctx, workload, workload in known, repair)
    gone = known - set(ctx.store.ids())
    faults += [f"workload {short(i)}: in the index, but not in storage" for i in sorted(gone)]
    return faults


def _check_one(ctx: Context, workload: str, indexed: bool, repair: bool) -> list[str]:
    faults = [] if indexed else [f"workload {short(workload)}: in storage, but not in the index"]
    try:
        spec = ctx.store.read(workload)
        recorded, state = ctx.store.state(workload), observe(ctx, workload)
    except CorruptStore as error:
        return [*faults, error.message]
    if recorded.status != state.status:
        faults.append(f"workload {short(workload)}: recorded as {recorded.status}: {state.error}")
        if repair:
            with ctx.lock(workload):
                settle(ctx, workload)
                lifecycle.release(ctx, spec)
    return faults


def _check_builds(ctx: Context, repair: bool) -> list[str]:
    """Build directories whose builder died (it held a lock while it lived)."""
    faults = []
    for directory in sorted((ctx.root / "builds").iterdir()):
        if not directory.is_dir():
            continue
        try:
            with locked(directory / "lock", timeout=0):
                faults.append(f"build {directory.name}: left over by a killed build")
                if repair:
                    shutil.rmtree(directory, ignore_errors=True)
        except VmmError:
            continue
    return faults


def _check_runs(ctx: Context, repair: bool) -> list[str]:
    """Run-time directories that no live shim of a workload owns."""
    faults = []
    owners = {short(workload): workload for workload in ctx.store.ids()}
    for directory in sorted(ctx.run_dir.iterdir()):
        if not directory.is_dir() or len(directory.name) != 12:
            continue
        owner = owners.get(directory.name)
        if owner and shim_alive(ctx.store.state(owner)):
            continue
        if _listening(str(directory / "ctl.sock")):
            continue
        faults.append(f"run directory {directory}: no shim lives there")
        if repair:
            shutil.rmtree(directory, ignore_errors=True)
    return faults


def _listening(path: str) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1)
        try:
            sock.connect(path)
        except OSError:
            return False
    return True


def rebuild(ctx: Context) -> list[str]:
    """Make the index anew from storage; the ids whose documents are damaged."""
    with ctx.lock("instance"):
        return ctx.fill(ctx.index)


def prune(ctx: Context, *, all_images: bool, volumes: bool) -> dict[str, Any]:
    """Remove stopped workloads, dangling (or all unused) images, build leftovers and volumes."""
    recover(ctx)
    removed: list[str] = []
    for row in ctx.index.rows():
        state = observe(ctx, row.id)
        if state.status in LIVE or shim_alive(state):
            continue
        lifecycle.remove(ctx, row.id)
        removed.append(row.id)
    dropped: list[str] = []
    if volumes:
        dropped = list(ctx.volumes.prune(volumes_in_use(ctx))[0])
    _check_builds(ctx, repair=True)
    with ctx.lock("images"):
        shutil.rmtree(ctx.root / "build-cache", ignore_errors=True)
        images = ctx.images.prune(in_use=set(images_in_use(ctx)), everything=all_images)
    return {
        "containers": removed,
        "volumes": dropped,
        "images": list(images.lines),
        "freed": images.freed,
    }


def boot(ctx: Context) -> list[str]:
    """After the host came up: repair, then start what asks for it; the names started."""
    check(ctx, repair=True)
    started = []
    for row in reversed(ctx.index.rows()):
        spec, state = ctx.store.read(row.id), observe(ctx, row.id)
        wanted = spec.restart.policy == "always" or (
            spec.restart.policy == "unless-stopped" and not state.manual_stop
        )
        if not wanted or state.status in LIVE or not state.started:
            continue
        try:
            lifecycle.start(ctx, row.id)
            started.append(row.name)
        except VmmError as error:
            ctx.notices.append(f"{row.name}: {error.message}")
    return started
