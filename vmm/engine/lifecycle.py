"""Create, start, stop, kill, restart, rename, remove, reap."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import msgspec

from vmm.engine import backends, launching
from vmm.engine.context import Context
from vmm.engine.recovery import recover
from vmm.engine.resolve import resolve
from vmm.engine.status import LIVE, observe, settle, shim_alive
from vmm.model import names
from vmm.model.backend import RootLayout
from vmm.model.errors import Conflict, NotFound, ShimLost, UsageError, VmmError
from vmm.model.ids import check_name, new_id, short
from vmm.model.request import CreateRequest
from vmm.model.signals import number
from vmm.model.spec import Log, Mount, WorkloadSpec
from vmm.state.journal import Undo


def create(ctx: Context, request: CreateRequest) -> WorkloadSpec:
    """Make a workload without starting it; all of it or nothing."""
    recover(ctx)
    with ctx.lock("images", shared=True):
        image = ctx.images.resolve(request.image)
        name = check_name(request.name) if request.name else names.generate()
        spec = resolve(
            request,
            image,
            workload=new_id(),
            name=name,
            created=time.time_ns(),
            log=_default_log(ctx),
            stop_timeout=ctx.settings.stop_timeout,
            pids_limit=ctx.settings.pids_limit,
            reference=request.image,
        )
        chosen, reason = backends.choose(_wanted(ctx, request), spec.os, spec.architecture)
        spec = msgspec.structs.replace(spec, backend=chosen, backend_reason=reason)
        ctx.backend(chosen).check(spec, ctx.facts(chosen))
        _check_sources(spec.mounts)
        with ctx.journal.begin("create", spec.id), Undo() as undo:
            spec = _claim(ctx, spec, undo, generated=not request.name)
            _make(ctx, spec, image.chain_ids, undo)
            if request.cidfile:
                _write_cidfile(request.cidfile, spec.id)
    ctx.events.append("container", "create", spec.id, image=spec.image, name=spec.name)
    return spec


def _default_log(ctx: Context) -> Log:
    settings = ctx.settings
    driver = "none" if settings.log_driver == "none" else "json-file"
    return Log(driver=driver, max_size=settings.log_max_size, max_file=settings.log_max_file)  # type: ignore[arg-type]


def _wanted(ctx: Context, request: CreateRequest) -> str:
    return ctx.settings.backend if request.backend == "auto" else request.backend


def _check_sources(mounts: tuple[Mount, ...]) -> None:
    for mount in mounts:
        if mount.kind == "bind" and not os.path.exists(mount.source):
            raise UsageError(
                f"invalid mount config: bind source path does not exist: {mount.source}",
                f"create it first: mkdir -p {mount.source}",
            )


def _claim(ctx: Context, spec: WorkloadSpec, undo: Undo, *, generated: bool) -> WorkloadSpec:
    """Claim the name and the address; a generated name that is taken is drawn again."""
    for attempt in range(20):
        try:
            ctx.index.add(spec.id, spec.name, spec.created)
            break
        except Conflict:
            if not generated or attempt == 19:
                raise
            spec = msgspec.structs.replace(spec, name=f"{names.generate()}_{attempt}")
    undo.push(lambda: ctx.index.remove(spec.id))
    if spec.network.mode != "bridge":
        return spec
    endpoint = ctx.network.endpoint(ctx.bridge(), spec.id)
    network = msgspec.structs.replace(
        spec.network,
        address=endpoint.address,
        prefix=endpoint.prefix,
        gateway=endpoint.gateway,
        mac=endpoint.mac,
    )
    return msgspec.structs.replace(spec, network=network)


def _make(ctx: Context, spec: WorkloadSpec, chain_ids: tuple[str, ...], undo: Undo) -> WorkloadSpec:
    """The directory, the copy-on-write root, the volumes, and last the spec that registers it."""
    directory = ctx.store.path(spec.id)
    undo.push(lambda: shutil.rmtree(directory, ignore_errors=True))
    directory.mkdir(mode=0o710)
    (directory / "exec").mkdir(mode=0o700)
    layout = ctx.layers.prepare(chain_ids, directory)
    mounts = tuple(_volume(ctx, mount, layout, undo) for mount in spec.mounts)
    spec = msgspec.structs.replace(spec, mounts=mounts)
    ctx.store.write(spec)
    return spec


def _volume(ctx: Context, mount: Mount, layout: RootLayout, undo: Undo) -> Mount:
    """Make the volume of a mount if it is missing; a new one takes the image's files."""
    if mount.kind != "volume":
        return mount
    if not mount.source or not ctx.volumes.exists(mount.source):
        name = ctx.volumes.create(mount.source).name
        undo.push(lambda: ctx.volumes.remove(name))
        mount = msgspec.structs.replace(mount, source=name)
    if not mount.nocopy:
        view = ctx.layers.view(layout)
        try:
            ctx.volumes.fill(mount.source, view, mount.target)
        finally:
            os.close(view)
    return mount


def _write_cidfile(path: str, workload: str) -> None:
    try:
        with open(path, "x") as file:
            file.write(workload)
    except FileExistsError:
        raise Conflict(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None


def start(ctx: Context, reference: str) -> WorkloadSpec:
    """Start detached; nothing happens when it runs already."""
    with launching.started(ctx, reference) as (spec, control):
        if control is not None:
            control.start()
    return spec


def stop(
    ctx: Context, reference: str, timeout: int | None, signal: str | None, *, keep: bool = False
) -> None:
    """The image's stop signal, then KILL after ``timeout`` seconds (-1: never).

    ``keep``: a workload of ``--rm`` is not removed, since it is started again.
    """
    spec = ctx.store.read(ctx.index.lookup(reference).id)
    seconds = spec.stop_timeout if timeout is None else timeout
    milliseconds = -1 if seconds < 0 else seconds * 1000
    end(ctx, spec.id, number(signal or spec.stop_signal), milliseconds)
    reap(ctx, spec.id, keep=keep)


def end(ctx: Context, workload: str, signum: int, milliseconds: int) -> None:
    """Stop by the shim and wait for its end; this process reaps, so the shim starts no reaper."""
    if not shim_alive(ctx.store.state(workload)):
        return
    with (
        contextlib.suppress(ShimLost),
        launching.connect(ctx, workload) as control,
        control.sibling() as waiter,
    ):
        waiter.expect_exit(promise=True)
        control.stop(signum, milliseconds)
        waiter.wait_closed()


def kill(ctx: Context, reference: str, signal: str) -> None:
    """Send a signal to the workload's first process."""
    row = ctx.index.lookup(reference)
    state = observe(ctx, row.id)
    if state.status not in ("running", "paused"):
        raise Conflict(
            f"Cannot kill container: {reference}: Container {row.id} is not running",
            "vmm ps -a shows its status",
        )
    signum = number(signal)
    with launching.connect(ctx, row.id) as control:
        control.signal(signum, manual=signum == 9)
        if signum == 9:
            with contextlib.suppress(ShimLost):
                control.wait_next()
    if signum == 9:
        reap(ctx, row.id)


def restart(ctx: Context, reference: str, timeout: int | None, signal: str | None) -> None:
    stop(ctx, reference, timeout, signal, keep=True)
    start(ctx, reference)


def rename(ctx: Context, reference: str, name: str) -> None:
    """Change the alias; the id and all that is named after it stay."""
    with ctx.workload(reference) as workload:
        spec = ctx.store.read(workload)
        ctx.index.rename(workload, check_name(name))
        ctx.store.write(msgspec.structs.replace(spec, name=name))
    ctx.events.append("container", "rename", workload, name=name, oldName=spec.name)


def remove(ctx: Context, reference: str, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a workload; ``force`` kills it first."""
    recover(ctx)
    row = ctx.index.lookup(reference)
    state = observe(ctx, row.id)
    if state.status in LIVE or shim_alive(state):
        if state.status in LIVE and not force:
            raise Conflict(
                f'cannot remove container "{row.name}": container is {state.status}: '
                "stop the container before removing or force remove",
                f"vmm rm -f {row.name}",
            )
        end(ctx, row.id, 9, 0)
    with ctx.lock(row.id):
        purge(ctx, row.id, volumes=volumes)


def purge(ctx: Context, workload: str, *, volumes: bool) -> None:
    """Remove all of a dead workload; every step may already be done (the lock is held)."""
    with ctx.journal.begin("remove", workload):
        spec: WorkloadSpec | None = None
        with contextlib.suppress(VmmError):
            spec = ctx.store.read(workload)
        if spec is not None:
            release(ctx, spec)
            _drop_volumes(ctx, spec, volumes)
        ctx.store.delete(workload)
        ctx.index.remove(workload)
        # Whoever waits for this lock finds the workload gone; nobody comes for it again.
        (ctx.run_dir / "locks" / workload).unlink(missing_ok=True)
    attributes = {"name": spec.name, "image": spec.image} if spec else {}
    ctx.events.append("container", "destroy", workload, **attributes)


def _drop_volumes(ctx: Context, spec: WorkloadSpec, wanted: bool) -> None:
    if not (wanted or spec.auto_remove):
        return
    for mount in spec.mounts:
        if mount.kind == "volume" and mount.anonymous:
            with contextlib.suppress(NotFound, Conflict):
                ctx.volumes.remove(mount.source)


def release(ctx: Context, spec: WorkloadSpec) -> None:
    """Give back what a run took: kernel objects, the network's rules and names, run-time files."""
    launching.detach_network(ctx, spec)
    ctx.backend(spec.backend).cleanup(launching.bare_input(ctx, spec))
    shutil.rmtree(ctx.run_dir / short(spec.id), ignore_errors=True)
    Path(ctx.store.path(spec.id) / launching.ATTACHMENT).unlink(missing_ok=True)


def reap(ctx: Context, reference: str, *, deadline: float = 10.0, keep: bool = False) -> None:
    """Tidy up after a workload that ended for good; ``--rm`` removes it. Safe to repeat."""
    try:
        workload = ctx.index.lookup(reference).id
    except NotFound:
        return
    _await_shim(ctx, workload, deadline)
    with ctx.lock(workload):
        if not ctx.store.registered(workload):
            return
        state = settle(ctx, workload)
        if shim_alive(state) or state.status in LIVE:
            return
        spec = ctx.store.read(workload)
        if spec.auto_remove and state.started and not keep:
            purge(ctx, workload, volumes=True)
        else:
            release(ctx, spec)


def _await_shim(ctx: Context, workload: str, deadline: float) -> None:
    """A shim ends a moment after its last answer; wait for it, but not for one that goes on."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        state = ctx.store.state(workload)
        if state.status in LIVE or not shim_alive(state):
            return
        time.sleep(0.002)
