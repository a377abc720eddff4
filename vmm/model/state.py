"""What is known of a workload that ran (``state.json``, written by the shim alone)."""

from typing import Literal

import msgspec

from vmm.model.backend import Endpoint
from vmm.model.spec import Port

#: Beside ``state.json``: what the last health probes found.
HEALTH_LOG = "health.jsonl"
#: "": nothing is probed.
HealthStatus = Literal["", "starting", "healthy", "unhealthy"]
Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Times are integer nanoseconds UTC, 0 for never; ``pid_start`` is in clock ticks since boot
    (proc_pid_stat(5), field 22), which with ``boot_id`` tells a reused pid from the real one."""

    schema: int = 1
    status: Status = "created"
    pid: int = 0
    pid_start: int = 0
    #: The process that serves a guest's shared files (virtiofsd), 0 for none.
    needs: int = 0
    needs_start: int = 0
    shim_pid: int = 0
    shim_start: int = 0
    boot_id: str = ""
    exit_code: int = 0
    signal: int = 0
    oom_killed: bool = False
    error: str = ""
    created: int = 0
    started: int = 0
    finished: int = 0
    restart_count: int = 0
    manual_stop: bool = False
    health: HealthStatus = ""
    #: Probes that failed in succession.
    failing_streak: int = 0


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What one health probe found (a line of ``health.jsonl``, written by the shim alone)."""

    #: Nanoseconds UTC.
    start: int
    end: int
    #: -1: it took too long, or could not be run.
    exit_code: int
    output: str


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """How a started workload hangs on its network (``network.json``, written at each start)."""

    endpoint: Endpoint | None = None
    #: Bound ports, one per address.
    ports: tuple[Port, ...] = ()
