"""From a stored spec to a running shim: network, files, user, plan, spawn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vmm.engine.context import Context, boot_id
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, settle, shim_alive
from vmm.engine.users import inside, resolve_user
from vmm.model.backend import (
    CompileInput,
    Endpoint,
    ResolvedMount,
    RootLayout,
    User,
)
from vmm.model.errors import Conflict, CorruptStore, ShimLost, UsageError, VmmError
from vmm.model.ids import link_name, short
from vmm.model.spec import Mount, Port, WorkloadSpec
from vmm.model.state import Attachment, State
from vmm.ports.files import atomic_write

if TYPE_CHECKING:
    from vmm.control.client import Control
    from vmm.model.launch import LaunchPlan
    from vmm.network.ports import PublishedPort

ATTACHMENT = "network.json"


def connect(ctx: Context, workload: str) -> Control:
    """A connection to the workload's shim; ShimLost when there is none."""
    from vmm.control.client import Control

    path = str(ctx.run_dir / short(workload) / "ctl.sock")
    try:
        return Control.connect(path)
    except ShimLost:
        if not adopt(ctx, workload):
            raise
    return Control.connect(path)


@contextlib.contextmanager
def started(ctx: Context, reference: str) -> Iterator[tuple[WorkloadSpec, Control | None]]:
    """Spawn the shim of a stopped workload; the caller attaches to ``control`` and starts it.

    Yields None for the control connection when the workload runs already.  When the block fails,
    everything the start took is given back.  A start that its client left is joined: a second
    START is answered with the first.
    """
    recover(ctx)
    with ctx.workload(reference) as workload:
        state = settle(ctx, workload)
        spec = ctx.store.read(workload)
        if state.status == "paused":
            raise Conflict(
                "cannot start a paused container, try unpause instead", f"vmm unpause {spec.name}"
            )
        if state.status in LIVE:
            yield spec, None
            return
        if being_started(ctx, workload, state):
            with connect(ctx, workload) as control:
                yield spec, control
            return
        with ctx.journal.begin("start", workload) as undo:
            undo.push(lambda: _give_back(ctx, spec))
            spawn(ctx, spec)
            with connect(ctx, workload) as control:
                yield spec, control


def being_started(ctx: Context, workload: str, state: State) -> bool:
    """Whether a shim is about to start a workload that is not live (under its lock: for one who
    left); a shim that ends does not listen any more."""
    if shim_alive(state):
        with contextlib.suppress(ShimLost), connect(ctx, workload):
            return True
    return False


def _give_back(ctx: Context, spec: WorkloadSpec) -> None:
    from vmm.engine import lifecycle

    lifecycle.end_shim(ctx, spec.id, 9, 0)
    lifecycle.release(ctx, spec)


def spawn(ctx: Context, spec: WorkloadSpec) -> None:
    """Compile the spec and start its shim, which waits for the start request."""
    from vmm.control.spawn import spawn_shim

    backend = ctx.backend(spec.backend)
    backend.check(spec, ctx.facts(spec.backend))
    backend.cleanup(bare_input(ctx, spec))
    with contextlib.ExitStack() as sockets:
        given, fds = prepare(ctx, spec, sockets)
        _run_directory(given.paths.run)
        if backend.keeps_spec:
            ctx.copies.write(spec)
        backend.prepare(given, write_plan(ctx, given))
        spawn_shim(given.paths.libexec, _plan_path(given), fds)


def _plan_path(given: CompileInput) -> str:
    return f"{given.paths.directory}/launch.plan"


def write_plan(ctx: Context, given: CompileInput) -> LaunchPlan:
    """Compile, and keep the plan and its documents beside the spec."""
    plan = ctx.backend(given.spec.backend).compile(given)
    atomic_write(Path(_plan_path(given)), plan.encode())
    for name, text in plan.documents:
        atomic_write(Path(given.paths.directory) / name, text.encode())
    return plan


def record(ctx: Context, spec: WorkloadSpec) -> None:
    """Where the platform keeps definitions too, tell it of a new or changed spec."""
    backend = ctx.backend(spec.backend)
    if backend.keeps_spec:
        ctx.copies.write(spec)
        given = compile_input(ctx, spec)
        backend.record(given, backend.compile(given))


def forget(ctx: Context, spec: WorkloadSpec) -> None:
    """Take back what record() kept, ours first: a platform that does not answer is no reason to
    keep that."""
    ctx.copies.remove(spec.id)
    ctx.backend(spec.backend).forget(bare_input(ctx, spec))


def record_change(ctx: Context, spec: WorkloadSpec) -> None:
    """``record`` after a change that is made already: the platform's copy may follow later."""
    try:
        record(ctx, spec)
    except VmmError as error:
        ctx.notices.append(
            f"backend {spec.backend} keeps an older copy of {spec.name}: {error.message}; "
            "later: vmm system check --repair"
        )


def adopt(ctx: Context, workload: str) -> bool:
    """Give a workload that lost its shim, but runs on, a new one; whether it has one now."""
    from vmm.control.spawn import spawn_shim

    if not _may_outlive(ctx, workload):
        return False
    with ctx.lock(workload):
        state = ctx.store.state(workload)
        if state.status not in LIVE or state.boot_id != boot_id():
            return False
        if shim_alive(state):
            return True
        spec = ctx.store.read(workload)
        backend = ctx.backend(spec.backend)
        if not backend.outlives_shim or not backend.alive(bare_input(ctx, spec)):
            return False
        bound = msgspec.structs.replace(spec.network, ports=attachment(ctx, workload).ports)
        with contextlib.ExitStack() as sockets:
            given, fds = prepare(ctx, msgspec.structs.replace(spec, network=bound), sockets)
            given = msgspec.structs.replace(given, adopt=True)
            write_plan(ctx, given)
            _run_directory(given.paths.run)
            spawn_shim(given.paths.libexec, _plan_path(given), fds)
        _await_takeover(given.paths.run)
    return True


def _await_takeover(run: str) -> None:
    """Until the new shim has reached the guest; one that is paused answers only later."""
    from vmm.control.client import Control

    with contextlib.suppress(VmmError), Control.connect(f"{run}/ctl.sock") as control:
        control.start()


def _may_outlive(ctx: Context, workload: str) -> bool:
    """Whether it is worth to take the workload's lock, which a caller that ends it holds."""
    with contextlib.suppress(CorruptStore):
        if ctx.store.state(workload).status in LIVE:
            return ctx.backend(ctx.store.read(workload).backend).outlives_shim
    return False


def _run_directory(path: str) -> None:
    Path(path).mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        Path(path, "ctl.sock").unlink()


def prepare(
    ctx: Context, spec: WorkloadSpec, sockets: contextlib.ExitStack
) -> tuple[CompileInput, list[int]]:
    """Bind the ports first, then write the workload's own files and settle the rest."""
    published = _bind(ctx, spec)
    for port in published:
        sockets.callback(os.close, port.fd)
    relay = _attach(ctx, spec, published)
    _write_files(ctx, spec)
    given = msgspec.structs.replace(compile_input(ctx, spec), relay=relay)
    return given, [port.fd for port in published]


def compile_input(ctx: Context, spec: WorkloadSpec) -> CompileInput:
    """All that compile() looks at, as the host and the image are now."""
    image = ctx.images.resolve(spec.image_id)
    layout = ctx.prepare_root(spec.backend, image.chain_ids, spec.id)
    user = user_of(ctx, spec, layout)
    return msgspec.structs.replace(
        bare_input(ctx, spec),
        spec=with_runtime_env(spec, user),
        stored=spec,
        root=msgspec.structs.replace(layout, volatile=spec.auto_remove),
        user=user,
        mounts=tuple(resolve_mount(ctx, mount) for mount in spec.mounts),
        devices=ctx.backend(spec.backend).devices(spec),
        endpoint=_endpoint(ctx, spec),
        seccomp=ctx.seccomp(spec),
        reaper=ctx.reaper(spec.id),
        files={} if ctx.backend(spec.backend).shares_files else generated_files(ctx, spec.id),
    )


def generated_files(ctx: Context, workload: str) -> dict[str, str]:
    """The texts of a workload's own /etc files, as they were written last."""
    paths = ctx.paths(workload)
    files = {
        "/etc/hosts": paths.hosts,
        "/etc/hostname": paths.hostname,
        "/etc/resolv.conf": paths.resolv_conf,
    }
    return {
        inside: Path(path).read_text() for inside, path in files.items() if os.path.exists(path)
    }


def _bind(ctx: Context, spec: WorkloadSpec) -> list[PublishedPort]:
    if not spec.network.ports:
        return []
    from vmm.network.ports import bind_ports

    return bind_ports(spec.network.ports, ctx.settings.publish_addresses)


def bare_input(ctx: Context, spec: WorkloadSpec) -> CompileInput:
    """What compile() needs at the least: enough for clean-up and exec."""
    return CompileInput(
        spec=spec,
        root=RootLayout(driver="overlay"),
        host=ctx.facts(spec.backend),
        paths=ctx.paths(spec.id),
        cgroup_parent=ctx.settings.mark,
        boot_id=boot_id(),
        guest_memory=ctx.settings.guest_memory,
    )


def _endpoint(ctx: Context, spec: WorkloadSpec) -> Endpoint | None:
    network = spec.network
    if network.mode != "bridge":
        return None
    return Endpoint(
        bridge=ctx.settings.bridge,
        link=link_name(spec.id),
        address=network.address,
        prefix=network.prefix,
        gateway=network.gateway,
        mac=network.mac,
        mtu=ctx.settings.mtu,
    )


def _attach(ctx: Context, spec: WorkloadSpec, published: list[PublishedPort]) -> tuple[str, ...]:
    """Put the workload on its network (record, rules); the argv of its port relay."""
    if spec.network.mode != "bridge":
        return ()
    ctx.bridge()
    ports: tuple[Port, ...] = tuple(p.port for p in published)
    attachment = Attachment(endpoint=_endpoint(ctx, spec), ports=ports)
    atomic_write(ctx.store.path(spec.id) / ATTACHMENT, msgspec.json.encode(attachment))
    if not published:
        return ()
    from vmm.network.ports import relay_argv

    ctx.network.publish(spec.id, spec.network.address, ports)
    return tuple(relay_argv(str(ctx.settings.libexec_dir), published, spec.network.address))


def attachment(ctx: Context, workload: str) -> Attachment:
    """The workload's place on its network as of its last start."""
    try:
        data = (ctx.store.path(workload) / ATTACHMENT).read_bytes()
        return msgspec.json.decode(data, type=Attachment)
    except (FileNotFoundError, msgspec.MsgspecError):
        return Attachment()


def detach_network(ctx: Context, spec: WorkloadSpec) -> None:
    """Take the workload's published ports and names back; its address stays claimed."""
    if spec.network.mode != "bridge":
        return
    if attachment(ctx, spec.id).ports:
        ctx.network.unpublish(spec.id)
    (ctx.store.path(spec.id) / ATTACHMENT).unlink(missing_ok=True)  # from here on no member
    from vmm.engine.members import rewrite_hosts

    rewrite_hosts(ctx, leaving=spec.id)


def _write_files(ctx: Context, spec: WorkloadSpec) -> None:
    from vmm.engine.members import write_own_files

    write_own_files(ctx, spec)


def user_of(ctx: Context, spec: WorkloadSpec, layout: RootLayout) -> User:
    """The user the workload runs as, by the files of its own root."""
    view = ctx.layers.view(layout)
    try:
        return resolve_user(inside(view), spec.process.user)
    finally:
        os.close(view)


def with_runtime_env(spec: WorkloadSpec, user: User) -> WorkloadSpec:
    """PATH, HOSTNAME, TERM and HOME as Docker sets them, under what the image and caller say."""
    from vmm.engine.resolve import PATH, merge_env

    own = [PATH, f"HOSTNAME={spec.network.hostname}"]
    if spec.process.tty:
        own.append("TERM=xterm")
    own.append(f"HOME={user.home}")
    process = msgspec.structs.replace(spec.process, env=merge_env(own, spec.process.env))
    return msgspec.structs.replace(spec, process=process)


def resolve_mount(ctx: Context, mount: Mount) -> ResolvedMount:
    """Settle a mount's source; UsageError when it is not there."""
    source, directory, options = mount.source, True, list(mount.options)
    if mount.kind == "volume":
        source = str(ctx.volumes.data(mount.source))
    if mount.kind != "tmpfs":
        if not os.path.exists(source):
            raise UsageError(
                f"{mount.kind} source path does not exist: {source}", "create it, then start again"
            )
        directory = os.path.isdir(source)
    if mount.size is not None:
        options.append(f"size={mount.size}")
    if mount.mode is not None:
        options.append(f"mode={mount.mode:o}")
    return ResolvedMount(
        kind=mount.kind,
        target=mount.target,
        source=source,
        directory=directory,
        read_only=mount.read_only,
        propagation=mount.propagation,
        options=tuple(options),
    )


def running(ctx: Context, reference: str) -> WorkloadSpec:
    """The spec of a workload that runs; Conflict in Docker's words when it does not."""
    from vmm.engine.status import seen

    row = ctx.index.lookup(reference)
    state = seen(ctx, row.id)
    if state.status != "running":
        raise Conflict(
            f"Container {row.id} is not running" if state.status != "paused" else
            f"Container {reference} is paused, unpause the container first",
            f"start it: vmm start {row.name}" if state.status != "paused" else
            f"vmm unpause {row.name}",
        )  # fmt: skip
    return ctx.store.read(row.id)
