"""What a workload's state is now: the shim's record, corrected by what the kernel says."""

from __future__ import annotations

import contextlib
import time

import msgspec

from vmm.engine.context import Context, alive, boot_id
from vmm.model.backend import Halting
from vmm.model.errors import CorruptStore, HostError, ShimLost
from vmm.model.state import State

#: Exit code recorded for a workload that a reboot of the host ended (Docker's).
REBOOTED = 255
LIVE = ("running", "paused", "restarting")


def observe(ctx: Context, workload: str) -> State:
    """The state as it is; a record that outlived its shim is reported as what it must be now."""
    state = ctx.store.state(workload)
    if state.status not in LIVE or alive(state.shim_pid, state.shim_start):
        return state
    # The shim may have ended in order between the two reads: its last record decides.
    state = ctx.store.state(workload)
    if state.status not in LIVE:
        return state
    if state.boot_id != boot_id():
        return _ended(state, REBOOTED, 0, "host rebooted")
    if _runs_alone(ctx, workload):
        return state
    return _ended(state, 137, 9, "shim lost")


def _runs_alone(ctx: Context, workload: str) -> bool:
    """Whether the workload goes on without its shim, as a guest does; the next command that needs
    a shim gives it a new one."""
    from vmm.engine.launching import bare_input

    with contextlib.suppress(CorruptStore, HostError):
        spec = ctx.store.read(workload)
        backend = ctx.backend(spec.backend)
        return backend.outlives_shim and backend.alive(bare_input(ctx, spec))
    return False


def seen(ctx: Context, workload: str) -> State:
    """The same for whoever wants it to run on: paused as well, with the reason as its error, when
    the platform itself stopped it."""
    state = observe(ctx, workload)
    why = _halt(ctx, workload, state)
    return msgspec.structs.replace(state, status="paused", error=why) if why else state


def halted(ctx: Context, workload: str) -> bool:
    """Whether its platform stopped it, which its shim does not know."""
    return bool(_halt(ctx, workload, observe(ctx, workload)))


def _halt(ctx: Context, workload: str, state: State) -> str:
    if state.status != "running":
        return ""
    backend = ctx.backend(ctx.store.read(workload).backend)
    return backend.halted(workload) if isinstance(backend, Halting) else ""


def shown(ctx: Context, workload: str) -> State:
    """The state for a list of many: one that cannot be read is ``dead`` and says why."""
    try:
        return observe(ctx, workload)
    except CorruptStore as error:
        return State(status="dead", error=error.message)


def _ended(state: State, code: int, signal: int, why: str) -> State:
    return msgspec.structs.replace(
        state, status="exited", exit_code=code, signal=signal, error=why, pid=0, pid_start=0,
        needs=0, needs_start=0,
        finished=state.finished if state.finished > state.started else time.time_ns(),
        health="unhealthy" if state.health else "",
    )  # fmt: skip


def shim_alive(state: State) -> bool:
    """Whether the workload's shim runs, in this boot."""
    return alive(state.shim_pid, state.shim_start) and state.boot_id == boot_id()


def settle(ctx: Context, workload: str) -> State:
    """Write the corrected state down (the caller holds the workload's lock)."""
    recorded = ctx.store.state(workload)
    state = observe(ctx, workload)
    if state != recorded:
        ctx.store.write_state(workload, state)
        ctx.events.append("container", "die", workload, exitCode=str(state.exit_code))
    return state


def mend(ctx: Context, workload: str) -> None:
    """Write a damaged state anew (the lock is held): what the shim says, or that it is lost."""
    from vmm.engine.launching import connect

    with contextlib.suppress(CorruptStore):
        ctx.store.state(workload)
        return
    try:
        with connect(ctx, workload) as control:
            state = msgspec.json.decode(control.status(), type=State)
    except (ShimLost, msgspec.MsgspecError):
        now = time.time_ns()
        state = State(
            status="exited", exit_code=137, error="state lost", boot_id=boot_id(),
            created=now, started=now, finished=now,
        )  # fmt: skip
    ctx.store.write_state(workload, state)
