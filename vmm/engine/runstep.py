"""RUN of a build: a real container over the build's own root, without name, index or log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from vmm.control import frames
from vmm.control.client import Control, parse_exit
from vmm.control.spawn import spawn_shim
from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.resolve import merge_env
from vmm.model.backend import CompileInput, Endpoint, ResolvedMount, RootLayout, WorkloadPaths
from vmm.model.errors import ShimLost
from vmm.model.ids import short
from vmm.model.image import ContainerConfig
from vmm.model.launch import LaunchPlan
from vmm.model.spec import Log, Network, Process, WorkloadSpec
from vmm.ports.files import atomic_write


def run_step(
    ctx: Context,
    layout: RootLayout,
    config: ContainerConfig,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    *,
    identity: str,
    network: str,
    volumes: Mapping[str, str],
    output: Callable[[bytes], None],
) -> int:
    """Run one command in the layout's root; its exit code.

    ``identity`` is its id, ``volumes`` are host directories by their target inside.
    """
    workload = identity
    directory = Path(layout.upper).parent
    spec = WorkloadSpec(
        id=workload,
        name=f"build-{short(workload)}",
        backend="container",
        image="",
        image_id="",
        created=0,
        process=Process(
            cmd=argv, env=merge_env(env), cwd=config.working_dir or "/", user=config.user
        ),
        network=Network(mode=network, hostname=short(workload)),
        log=Log(driver="none"),
    )
    backend = ctx.backend("container")
    with ctx.journal.begin("step", workload) as undo:
        undo.push(lambda: drop_step(ctx, workload))
        given = _input(ctx, spec, layout, directory, volumes)
        Path(given.paths.run).mkdir(mode=0o700)
        with launched(given, backend.compile(given)) as control:
            code = _follow(control, output)
        drop_step(ctx, workload)
    for name in ("launch.plan", "state.json", "hosts", "hostname", "resolv.conf"):
        (directory / name).unlink(missing_ok=True)
    return code


def drop_step(ctx: Context, workload: str, name: str = "container") -> None:
    """Kill a step of backend ``name`` if it runs and release what it took; its files are the
    build's."""
    from vmm.engine import guests, lifecycle

    lifecycle.end_shim(ctx, workload, 9, 0)
    guests.forget(ctx, msgspec.structs.replace(lifecycle.remains(workload), backend=name))
    ctx.network.release(workload)
    lifecycle.remove_tree(str(ctx.run_dir / short(workload)))


def _paths(ctx: Context, spec: WorkloadSpec, directory: Path) -> WorkloadPaths:
    return msgspec.structs.replace(
        ctx.paths(spec.id),
        directory=str(directory),
        state=str(directory / "state.json"),
        hosts=str(directory / "hosts"),
        hostname=str(directory / "hostname"),
        resolv_conf=str(directory / "resolv.conf"),
    )


def _input(
    ctx: Context,
    spec: WorkloadSpec,
    layout: RootLayout,
    directory: Path,
    volumes: Mapping[str, str],
) -> CompileInput:
    endpoint: Endpoint | None = None
    if spec.network.mode == "bridge":
        endpoint = ctx.network.endpoint(ctx.bridge(), spec.id)
        own = msgspec.structs.replace(spec.network, address=endpoint.address)
        spec = msgspec.structs.replace(spec, network=own)
    paths = _paths(ctx, spec, directory)
    _write_files(spec, paths)
    user = launching.user_of(ctx, spec, layout)
    return msgspec.structs.replace(
        launching.bare_input(ctx, spec),
        spec=launching.with_runtime_env(spec, user),
        root=layout,
        paths=paths,
        user=user,
        endpoint=endpoint,
        mounts=tuple(
            ResolvedMount(kind="bind", target=target, source=source)
            for target, source in volumes.items()
        ),
        seccomp=ctx.seccomp(spec),
    )


def _write_files(spec: WorkloadSpec, paths: WorkloadPaths) -> None:
    from vmm.model.network import Member
    from vmm.network import names

    own = Member(
        workload=spec.id,
        address=spec.network.address,
        names=(spec.network.hostname,),
        hosts_path=paths.hosts,
    )
    names.rewrite(paths.hosts, names.render_hosts(own))
    names.rewrite(paths.hostname, spec.network.hostname + "\n")
    text = names.resolv_conf(names.host_resolv(), loopback_ok=spec.network.mode != "bridge")
    names.rewrite(paths.resolv_conf, text)


@contextlib.contextmanager
def launched(given: CompileInput, plan: LaunchPlan, *, stdin: bool = False) -> Iterator[Control]:
    """A process by itself, started and attached to on channel 0; whoever asks takes what it made
    (``drop_step``). Its run directory exists."""
    path = Path(given.paths.directory) / "launch.plan"
    atomic_write(path, plan.encode())
    spawn_shim(given.paths.libexec, path)
    with Control.connect(f"{given.paths.run}/ctl.sock") as control:
        control.attach(stdin=stdin)
        control.expect_exit(promise=True)  # first: the process may end as soon as it starts
        control.start()
        yield control


def _follow(control: Control, output: Callable[[bytes], None]) -> int:
    while frame := control.next_frame():
        if frame.type in (frames.STDOUT, frames.STDERR):
            output(frame.payload)
        elif frame.type == frames.EXIT:
            control.wait_closed()
            return parse_exit(frame).code
    raise ShimLost("the build step's shim went away")
