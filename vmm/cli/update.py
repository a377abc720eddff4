"""``vmm update``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.context import for_each
from vmm.cli.lifecycle import Containers
from vmm.cli.request import one, whole
from vmm.model import options
from vmm.model.errors import UsageError
from vmm.model.request import UpdateRequest

Text = str | None


def update(
    containers: Containers,
    cpu_shares: Annotated[
        Text,
        typer.Option("--cpu-shares", "-c", metavar="int", help="CPU shares (relative weight)"),
    ] = None,
    cpus: Annotated[Text, typer.Option("--cpus", metavar="decimal", help="Number of CPUs")] = None,
    cpuset_cpus: Annotated[
        Text, typer.Option("--cpuset-cpus", help="CPUs in which to allow execution (0-3, 0,1)")
    ] = None,
    memory: Annotated[
        Text, typer.Option("--memory", "-m", metavar="bytes", help="Memory limit")
    ] = None,
    memory_swap: Annotated[
        Text,
        typer.Option("--memory-swap", metavar="bytes", help="Memory plus swap; -1: unlimited swap"),
    ] = None,
    pids_limit: Annotated[
        Text, typer.Option("--pids-limit", metavar="int", help="Limit of processes; -1: unlimited")
    ] = None,
    restart: Annotated[
        Text,
        typer.Option("--restart", help="no, always, unless-stopped, on-failure[:max]"),
    ] = None,
) -> int:
    """Update the limits of one or more workloads.

    They hold at once for one that runs, and are kept for its next start. A virtual machine that
    runs takes less memory or CPU time than it was started with; for more, or another --pids-limit,
    stop it first.

    Examples:
      vmm update -m 512m --memory-swap 1g web
      vmm update --restart unless-stopped web db
    """
    pids = whole("--pids-limit", pids_limit, low=-1, high=1 << 22)
    request = UpdateRequest(
        memory=one("-m, --memory", memory, options.memory),
        memory_swap=one("--memory-swap", memory_swap, _swap),
        nano_cpus=one("--cpus", cpus, options.nano_cpus),
        cpu_shares=whole("--cpu-shares", cpu_shares, low=2, high=262144),
        cpuset_cpus=one("--cpuset-cpus", cpuset_cpus, options.cpuset),
        pids_limit=-1 if pids == 0 else pids,
        restart=None if restart is None else options.restart(restart),
    )
    if request == UpdateRequest():
        raise UsageError(
            "You must provide one or more flags when using this command.", "vmm update --help"
        )
    engine = context.engine()
    return for_each(containers, lambda name: engine.update(name, request))


def _swap(text: str) -> int:
    return -1 if text.strip() == "-1" else options.size(text)
