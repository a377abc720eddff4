"""Looking after an instance: info, df, check and repair, rebuild, prune, boot."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from vmm import __version__
from vmm.engine import lifecycle
from vmm.engine.context import Context
from vmm.engine.lifecycle import remove_tree
from vmm.engine.recovery import abandoned_builds, recover
from vmm.engine.status import LIVE, observe, shown
from vmm.model.backend import HostFacts
from vmm.model.errors import HostError, VmmError


def info(ctx: Context) -> dict[str, Any]:
    """What this instance and host are, in Docker's field names where it has them."""
    from vmm.engine import backends

    rows = ctx.index.rows()
    statuses = [shown(ctx, row.id).status for row in rows]
    uname = os.uname()
    facts = ctx.facts("container")
    return {
        "ID": ctx.settings.instance,
        "Containers": len(rows),
        "ContainersRunning": statuses.count("running"),
        "ContainersPaused": statuses.count("paused"),
        "ContainersStopped": len([s for s in statuses if s not in {"running", "paused"}]),
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
            for name, caps in backends.probe(ctx.options)
            if name != "network"
        },
        "Settings": dict(ctx.settings.sources),
        "Warnings": warnings(ctx) + _blocking(ctx),
    }


def cgroup_version(facts: HostFacts) -> int:
    """The version that manages memory here: on a hybrid host that is 1."""
    with_memory = [h.version for h in facts.cgroups if "memory" in h.controllers]
    return min(with_memory, default=2)


def _blocking(ctx: Context) -> list[str]:
    """Foreign rules that drop our traffic; asking costs a run of nft(8)."""
    with contextlib.suppress(HostError):
        return list(filter(None, [ctx.network.detect_blocking()]))
    return []


def warnings(ctx: Context) -> list[str]:
    """What stands in the way of workloads on this host."""
    found = list(ctx.network.warnings())
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
    running = [row for row in rows if shown(ctx, row.id).status in LIVE]
    writable = {row.id: _written(ctx, row.id) for row in rows}
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


def _written(ctx: Context, workload: str) -> int:
    """Bytes that a workload's own files, or its disk, take."""
    directory = ctx.store.path(workload)
    with contextlib.suppress(FileNotFoundError):
        return ctx.layers.usage(str(directory / "upper"))
    return ctx.disks.usage(directory)


def _row(kind: str, total: int, active: int, size: int, reclaimable: int) -> dict[str, Any]:
    return {
        "Type": kind, "TotalCount": total, "Active": active, "Size": size,
        "Reclaimable": reclaimable,
    }  # fmt: skip


def volumes_in_use(ctx: Context, without: str = "") -> dict[str, list[str]]:
    """Volume names with the workloads (but one) that mount them; CorruptStore when it cannot be
    known, since a volume must not be removed then."""
    found: dict[str, list[str]] = {}
    for row in ctx.index.rows():
        if row.id == without or not ctx.store.registered(row.id):
            continue
        spec = ctx.store.read(row.id)
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


def prune(ctx: Context, *, all_images: bool, volumes: bool) -> dict[str, Any]:
    """Remove stopped workloads, dangling (or all unused) images, build leftovers and volumes."""
    recover(ctx)
    removed: list[str] = []
    for row in ctx.index.rows():
        with contextlib.suppress(VmmError):  # it runs, or is gone meanwhile
            lifecycle.remove(ctx, row.id)
            removed.append(row.id)
    dropped: list[str] = []
    if volumes:
        dropped = list(ctx.volumes.prune(volumes_in_use(ctx))[0])
    with ctx.lock("images"):
        remove_tree(os.fspath(ctx.root / "build-cache"))
        images = ctx.images.prune(
            in_use=set(images_in_use(ctx)), everything=all_images, min_age=_sparing(ctx)
        )
        freed = images.freed + ctx.disks.prune()
    return {
        "containers": removed,
        "volumes": dropped,
        "images": list(images.lines),
        "freed": freed,
    }


def _sparing(ctx: Context) -> float:
    """Seconds for which layers and blobs without an image are spared: a build may want them."""
    building = set(os.listdir(ctx.root / "builds")) - set(abandoned_builds(ctx))
    return 3600 if building else 0


def boot(ctx: Context) -> list[str]:
    """After the host came up: repair, then start what asks for it; the names started."""
    from vmm.engine.check import check

    ctx.notices += check(ctx, repair=True)
    started = []
    for row in reversed(ctx.index.rows()):
        try:
            if _wants_start(ctx, row.id):
                lifecycle.start(ctx, row.id)
                started.append(row.name)
        except VmmError as error:
            ctx.notices.append(f"{row.name}: {error.message}")
    return started


def _wants_start(ctx: Context, workload: str) -> bool:
    spec, state = ctx.store.read(workload), observe(ctx, workload)
    if state.status in LIVE or not state.started:
        return False
    policy = spec.restart.policy
    return policy == "always" or (policy == "unless-stopped" and not state.manual_stop)
