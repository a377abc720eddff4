"""Attached streams: run, start -a, attach, exec."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.resolve import merge_env
from vmm.engine.status import observe
from vmm.engine.users import inside, resolve_user
from vmm.model.backend import Console, ExecInput, User
from vmm.model.errors import Conflict, ShimLost, Unsupported
from vmm.model.ids import new_id
from vmm.model.request import ExecRequest
from vmm.model.spec import WorkloadSpec
from vmm.ports.files import atomic_write
from vmm.ports.space import is_full

if TYPE_CHECKING:
    from vmm.control.client import Control
    from vmm.control.starting import Starting

#: Exec instances kept for inspection, newest last.
KEPT_EXECS = 1000


#: Rows and columns of a terminal.
Size = tuple[int, int]


class Session(NamedTuple):
    """Open streams of a workload or of one exec; pump them with vmm.control.terminal.

    ``starting``: the workload's start, which goes on meanwhile.
    """

    control: Control
    spec: WorkloadSpec
    channel: int = 0
    exec_id: str = ""
    starting: Starting | None = None


def attach(
    ctx: Context, reference: str, *, start: bool, stdin: bool, size: Size | None = None
) -> Session:
    """Attach to a running workload; with ``start``, one that is started once attached so that
    nothing is lost. Whoever carries the streams sees to the answer.

    ``size``: rows and columns that its terminal begins with.
    """
    if not start:
        spec = launching.running(ctx, reference)
        control = launching.connect(ctx, spec.id)
        control.attach(stdin=stdin)
        control.expect_exit()
        return Session(control, spec)
    from vmm.control.starting import Starting

    with contextlib.ExitStack() as taken:
        spec, waiting = taken.enter_context(launching.started(ctx, reference))
        control = launching.connect(ctx, spec.id)
        control.attach(stdin=stdin)
        control.expect_exit(promise=waiting is not None)
        if size:
            control.resize(*size)
        if waiting is None:
            return Session(control, spec)
        return Session(control, spec, starting=Starting(waiting, taken.pop_all()))


def exec_(ctx: Context, reference: str, request: ExecRequest) -> Session | None:
    """A further process in a running workload; None when detached."""
    spec = launching.running(ctx, reference)
    given = msgspec.structs.replace(
        launching.bare_input(ctx, spec),
        seccomp=ctx.seccomp(spec),
    )
    user = _user(ctx, spec, request)
    asked = ExecInput(
        argv=request.argv,
        env=_environment(spec, request, user),
        cwd=request.workdir or spec.process.cwd,
        user=user,
        tty=request.tty,
        privileged=request.privileged,
    )
    operations = ctx.backend(spec.backend).compile_exec(given, asked)
    exec_id = new_id()
    _record(ctx, spec.id, exec_id, request)
    control = launching.connect(ctx, spec.id)
    try:
        channel, _ = control.exec(
            exec_id,
            operations,
            tty=request.tty,
            stdin=request.stdin,
            detach=request.detach,
            size=request.size,
        )
    except BaseException:
        control.close()
        raise
    if request.detach:
        control.close()
        return None
    return Session(control, spec, channel, exec_id)


def _user(ctx: Context, spec: WorkloadSpec, request: ExecRequest) -> User:
    """Resolved by the files of the running root."""
    text = spec.process.user if request.user is None else request.user
    if not ctx.backend(spec.backend).shares_files:
        from vmm.engine.archives import reader

        return resolve_user(reader(ctx, spec), text)
    # Reached through the process, and opened as a root of its own.
    pid = observe(ctx, spec.id).pid
    try:
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        raise Conflict(f"Container {spec.id} is not running") from None
    try:
        return resolve_user(inside(root), text)
    finally:
        os.close(root)


def _environment(spec: WorkloadSpec, request: ExecRequest, user: User) -> tuple[str, ...]:
    from vmm.engine.resolve import PATH

    own = [PATH, f"HOSTNAME={spec.network.hostname}"]
    if request.tty:
        own.append("TERM=xterm")
    own.append(f"HOME={user.home}")
    return merge_env(own, spec.process.env, request.env)


def _record(ctx: Context, workload: str, exec_id: str, request: ExecRequest) -> None:
    """Keep what was asked beside the state the shim writes; the oldest make room."""
    directory = ctx.store.path(workload) / "exec"
    document = {"id": exec_id, "created": time.time_ns(), "request": msgspec.to_builtins(request)}
    try:
        atomic_write(directory / f"{exec_id}.config", msgspec.json.encode(document))
    except OSError as error:
        if not is_full(error):
            raise  # on a full disk it may be what makes room: it runs, and is not kept
    with os.scandir(directory) as entries:
        configs = [e for e in entries if e.name.endswith(".config")]
    if len(configs) > KEPT_EXECS:
        configs.sort(key=lambda entry: entry.stat().st_mtime_ns)
        for entry in configs[: len(configs) - KEPT_EXECS]:
            for suffix in (".config", ".json"):
                (directory / entry.name).with_suffix(suffix).unlink(missing_ok=True)


def wait(ctx: Context, reference: str) -> int:
    """Block until the workload ends for good; its exit code."""
    row = ctx.index.lookup(reference)
    with contextlib.suppress(ShimLost), launching.connect(ctx, row.id) as control:
        return control.wait().code
    return observe(ctx, row.id).exit_code


def console(ctx: Context, reference: str) -> str:
    """The terminal device of a running workload's own console; Unsupported where it has none."""
    spec = launching.running(ctx, reference)
    backend = ctx.backend(spec.backend)
    if not isinstance(backend, Console):
        raise Unsupported(
            f"backend {spec.backend} gives workloads no console of their own",
            f"use vmm attach {spec.name}, or vmm exec -it {spec.name} sh",
        )
    return backend.console(launching.bare_input(ctx, spec))


def resize(ctx: Context, reference: str, rows: int, columns: int) -> None:
    spec = launching.running(ctx, reference)
    with launching.connect(ctx, spec.id) as control:
        control.resize(rows, columns)
