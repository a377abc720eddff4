"""Create, start, stop, kill, restart, rename, remove, reap."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import msgspec

from vmm.engine import backends, launching
from vmm.engine.context import Context
from vmm.engine.members import rewrite_hosts
from vmm.engine.recovery import recover
from vmm.engine.resolve import clamp_defaults, resolve
from vmm.engine.status import LIVE, halted, observe, settle, shim_alive
from vmm.model import names
from vmm.model.backend import RootLayout
from vmm.model.errors import (
    Conflict,
    CorruptStore,
    HostError,
    NotFound,
    ShimLost,
    UsageError,
    VmmError,
)
from vmm.model.ids import check_name, new_id, short
from vmm.model.request import CreateRequest
from vmm.model.signals import number
from vmm.model.spec import Log, Mount, Network, WorkloadSpec
from vmm.state.index import Row
from vmm.state.journal import Undo

if TYPE_CHECKING:
    from vmm.control.client import Control

#: In a workload's directory until it is registered: the names of its new anonymous volumes.
NEW_VOLUMES = "volumes.new"


def remove_tree(path: str) -> None:
    """Remove a directory, whatever a workload made of it; one that is not there is fine."""
    from vmm.storage import tree

    tree.remove_tree(path)


def create(ctx: Context, request: CreateRequest) -> WorkloadSpec:
    """Make a workload without starting it; all of it or nothing."""
    recover(ctx)
    network = ctx.network.inspect(request.network).name
    request = msgspec.structs.replace(request, network=network)
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
        wanted = _wanted(ctx, request)
        chosen, reason = backends.choose(wanted, spec.os, spec.architecture, ctx.backend)
        if wanted == "vm":
            ctx.notices.append(f"backend {chosen}: {reason}")
        spec = msgspec.structs.replace(spec, backend=chosen, backend_reason=reason)
        facts = ctx.facts(chosen)
        spec = clamp_defaults(spec, request, facts)
        ctx.backend(chosen).check(spec, facts)
        _check_sources(spec.mounts)
        with ctx.journal.begin("create", spec.id) as undo:
            spec = _claim(ctx, spec, undo, generated=not request.name)
            spec = _make(ctx, spec, image.chain_ids, undo)
            undo.push(lambda: _forget(ctx, spec))
            launching.record(ctx, spec)
            if request.cidfile:
                _write_cidfile(request.cidfile, spec.id)
    ctx.events.append("container", "create", spec.id, image=spec.image, name=spec.name)
    return spec


def _default_log(ctx: Context) -> Log:
    settings = ctx.settings
    driver = settings.log_driver  # settings.load() has checked it
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
    undo.push(lambda: ctx.store.delete(spec.id, remove_tree))
    directory.mkdir(mode=0o710)
    (directory / "exec").mkdir(mode=0o700)
    layout = ctx.prepare_root(spec.backend, chain_ids, spec.id)
    new = {m.target: new_id() for m in spec.mounts if m.kind == "volume" and not m.source}
    if new:
        # Read by undo_create() should this process be killed before the spec is written.
        (directory / NEW_VOLUMES).write_text("\n".join(new.values()))
    mounts = tuple(_volume(ctx, m, new.get(m.target, ""), layout, undo) for m in spec.mounts)
    spec = msgspec.structs.replace(spec, mounts=mounts)
    ctx.store.write(spec)
    return spec


def _volume(ctx: Context, mount: Mount, anonymous: str, layout: RootLayout, undo: Undo) -> Mount:
    """Make the volume of a mount if it is missing; a new one takes the image's files."""
    if mount.kind != "volume":
        return mount
    name = mount.source or anonymous
    if not ctx.volumes.exists(name):
        undo.push(lambda: _drop_made(ctx, name))
        ctx.volumes.create(name, anonymous=bool(anonymous))
    mount = msgspec.structs.replace(mount, source=name)
    if not mount.nocopy:
        view = ctx.layers.view(layout)
        try:
            ctx.volumes.fill(mount.source, view, mount.target)
        finally:
            os.close(view)
    return mount


def _drop_made(ctx: Context, name: str) -> None:
    """Take the making of a volume back, which may have failed itself."""
    with contextlib.suppress(NotFound):
        ctx.volumes.remove(name)


def _write_cidfile(path: str, workload: str) -> None:
    try:
        with open(path, "x") as file:
            file.write(workload)
    except FileExistsError:
        raise Conflict(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"failed to create the container ID file {path}: {error.strerror}",
            "give --cidfile a path in a directory that exists and is writable",
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
    if shim_alive(ctx.store.state(spec.id)) or launching.adopt(ctx, spec.id):
        end_shim(ctx, spec.id, number(signal or spec.stop_signal), milliseconds)
    reap(ctx, spec.id, keep=keep)


def end_shim(ctx: Context, workload: str, signum: int, milliseconds: int) -> None:
    """Stop by the shim, if one listens, and wait for its end; this process reaps, so the shim
    starts no reaper."""
    with (
        contextlib.suppress(ShimLost),
        launching.connect(ctx, workload) as control,
        control.sibling() as waiter,
    ):
        _tell_halted(ctx, workload, control)
        waiter.expect_exit(promise=True)
        control.stop(signum, milliseconds)
        waiter.wait_closed()


def _tell_halted(ctx: Context, workload: str, control: Control) -> None:
    """What is paused goes on to take a signal; one that cannot be told so is ended all the same."""
    with contextlib.suppress(VmmError):
        if halted(ctx, workload):
            control.pause()


def kill(ctx: Context, reference: str, signal: str) -> None:
    """Send a signal to the workload's first process; one that asks it to end ends its start too."""
    row = ctx.index.lookup(reference)
    running = observe(ctx, row.id).status in ("running", "paused")
    try:
        _signal(ctx, row.id, number(signal))
    except ShimLost:
        if running:
            raise
        raise Conflict(
            f"Cannot kill container: {reference}: Container {row.id} is not running",
            "vmm ps -a shows its status",
        ) from None


def _signal(ctx: Context, workload: str, signum: int) -> None:
    with launching.connect(ctx, workload) as control:
        _tell_halted(ctx, workload, control)
        control.signal(signum, manual=signum == 9)
        if signum == 9:
            with contextlib.suppress(ShimLost):
                control.wait_next()
    if signum == 9:
        reap(ctx, workload)


def restart(ctx: Context, reference: str, timeout: int | None, signal: str | None) -> None:
    stop(ctx, reference, timeout, signal, keep=True)
    start(ctx, reference)


def rename(ctx: Context, reference: str, name: str) -> None:
    """Change the alias; the id and all that is named after it stay."""
    recover(ctx)
    if ctx.index.lookup(reference).name == name:
        raise Conflict(f'"{name}" is the current name of the workload', "give another")
    with ctx.workload(reference) as workload, ctx.journal.begin("rename", workload) as undo:
        spec = ctx.store.read(workload)
        ctx.index.rename(workload, check_name(name))
        undo.push(lambda: ctx.index.rename(workload, spec.name))
        renamed = msgspec.structs.replace(spec, name=name)
        ctx.store.write(renamed)
        launching.record_change(ctx, renamed)
    if spec.network.mode == "bridge":
        rewrite_hosts(ctx)
    ctx.events.append("container", "rename", workload, name=name, oldName=spec.name)


def remove(ctx: Context, reference: str, *, force: bool = False, volumes: bool = False) -> None:
    """Remove a workload; ``force`` kills it first."""
    recover(ctx)
    row = ctx.index.lookup(reference)
    if force:  # a command that starts it holds the lock until then
        _end_to_remove(ctx, row, force)
    with ctx.workload(row.id) as workload:
        _end_to_remove(ctx, row, force)  # another command may have started it meanwhile
        purge(ctx, workload, volumes=volumes)


def _end_to_remove(ctx: Context, row: Row, force: bool) -> None:
    """Kill what is to be removed if it runs and ``force`` allows it; Conflict if not."""
    try:
        state = observe(ctx, row.id)
    except CorruptStore:
        if not force:
            raise
        end_shim(ctx, row.id, 9, 0)
        return
    starting = state.status not in LIVE and launching.being_started(ctx, row.id, state)
    if (state.status in LIVE or starting) and not force:
        raise Conflict(
            f'cannot remove container "{row.name}": container is '
            f"{'being started' if starting else state.status}: "
            "stop the container before removing or force remove",
            f"vmm rm -f {row.name}",
        )
    if shim_alive(state):
        end_shim(ctx, row.id, 9, 0)


def purge(ctx: Context, workload: str, *, volumes: bool) -> None:
    """Remove all of a dead workload; every step may already be done (the lock is held)."""
    with ctx.journal.begin("remove", workload, volumes=volumes):
        spec = _spec_or_remains(ctx, workload)
        release(ctx, spec)
        _forget(ctx, spec)
        if volumes or spec.auto_remove:
            _drop_volumes(ctx, spec)
        ctx.store.delete(workload, remove_tree)
        ctx.index.remove(workload)
        # Whoever waits for this lock finds the workload gone; nobody comes for it again.
        (ctx.run_dir / "locks" / workload).unlink(missing_ok=True)
    ctx.events.append("container", "destroy", workload, name=spec.name, image=spec.image)


def _forget(ctx: Context, spec: WorkloadSpec) -> None:
    """Have the platform forget it as well; one that does not answer is asked by a repair later."""
    try:
        launching.forget(ctx, spec)
    except HostError as error:
        ctx.notices.append(
            f"backend {spec.backend} keeps the definition of {spec.name}, which is removed: "
            f"{error.message}; later: vmm system check --repair"
        )


def _spec_or_remains(ctx: Context, workload: str) -> WorkloadSpec:
    try:
        return ctx.store.read(workload)
    except CorruptStore:
        return ctx.copies.read(workload) or remains(workload)


def remains(workload: str, name: str = "") -> WorkloadSpec:
    """Stands for a workload without a readable spec: what release() needs to find the rest."""
    return WorkloadSpec(
        id=workload, name=name or short(workload), backend="container", image="", image_id="",
        created=0, network=Network(mode="bridge"),
    )  # fmt: skip


def _drop_volumes(ctx: Context, spec: WorkloadSpec) -> None:
    """Remove the anonymous volumes of a workload, except those that others mount by their name;
    none while that cannot be known (``vmm volume prune`` removes them later)."""
    from vmm.engine.maintenance import volumes_in_use

    names = [m.source for m in spec.mounts if m.kind == "volume" and m.anonymous]
    try:
        users = volumes_in_use(ctx, without=spec.id) if names else {}
    except CorruptStore as error:
        ctx.notices.append(f"anonymous volumes of {spec.name} are kept: {error.message}")
        return
    for name in names:
        with contextlib.suppress(NotFound, Conflict):
            ctx.volumes.remove(name, in_use=users.get(name, ()))


def undo_create(ctx: Context, workload: str) -> None:
    """Take back the creation of a workload that was not registered yet (the lock is held)."""
    directory = ctx.store.path(workload)
    with contextlib.suppress(FileNotFoundError):
        for name in (directory / NEW_VOLUMES).read_text().split():
            with contextlib.suppress(NotFound):
                ctx.volumes.remove(name)
    ctx.store.delete(workload, remove_tree)
    ctx.index.remove(workload)


def release(ctx: Context, spec: WorkloadSpec) -> None:
    """Give back what a run took: kernel objects, the network's rules and names, run-time files."""
    launching.detach_network(ctx, spec)
    ctx.backend(spec.backend).cleanup(launching.bare_input(ctx, spec))
    remove_tree(str(ctx.run_dir / short(spec.id)))


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
        if not shim_alive(state) and state.status not in LIVE:
            clear(ctx, workload, keep=keep)


def clear(ctx: Context, workload: str, *, keep: bool = False) -> None:
    """Release what a dead workload held, or remove it if it ran, or failed to, and says so (the
    lock is held)."""
    spec, state = _spec_or_remains(ctx, workload), ctx.store.state(workload)
    if spec.auto_remove and (state.started or state.error) and not keep:
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
