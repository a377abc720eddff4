"""Starting, stopping and removing: commands over one or more workloads."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.context import SAID, for_each
from vmm.cli.output import report
from vmm.model.errors import NotFound, UsageError

Containers = Annotated[list[str], typer.Argument(metavar="CONTAINER")]
Container = Annotated[str, typer.Argument(metavar="CONTAINER")]
Seconds = Annotated[
    str | None,
    typer.Option(
        "--time", "-t", "--timeout", metavar="int", help="Seconds to wait before KILL; -1: forever"
    ),
]
Signal = Annotated[str | None, typer.Option("--signal", "-s", help="Signal to send")]


def _seconds(text: str | None) -> int | None:
    from vmm.model.options import integer

    return None if text is None else integer(text, "--time", low=-1, high=1 << 31)


def start(
    containers: Containers,
    attach: Annotated[
        bool, typer.Option("--attach", "-a", help="Attach STDOUT/STDERR and forward signals")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Attach the workload's STDIN")
    ] = False,
    detach_keys: Annotated[
        str | None, typer.Option("--detach-keys", help="Keys that detach (ctrl-p,ctrl-q)")
    ] = None,
) -> int:
    """Start one or more stopped workloads.

    Examples:
      vmm start web db
      vmm start -ai shell
    """
    engine = context.engine()
    if not (attach or interactive):
        return for_each(containers, lambda name: engine.start(name) and None)
    if len(containers) > 1:
        raise UsageError("you cannot start and attach multiple containers at once")
    from vmm.cli.execute import finish
    from vmm.cli.streams import check_terminal, size

    process = engine.view(containers[0]).spec.process
    stdin = interactive and process.stdin_open
    check_terminal(tty=process.tty, stdin=stdin)
    rows_columns = size(tty=process.tty)
    session = engine.attach(containers[0], start=True, stdin=stdin, size=rows_columns)
    return finish(session, tty=process.tty, stdin=stdin, keys=detach_keys, proxy=True)


def stop(containers: Containers, time: Seconds = None, signal: Signal = None) -> int:
    """Stop one or more running workloads.

    The image's stop signal (or --signal) is sent, then KILL after a grace period.

    Examples:
      vmm stop web
      vmm stop -t 2 web db
    """
    engine, seconds = context.engine(), _seconds(time)
    return for_each(containers, lambda name: engine.stop(name, seconds, signal))


def restart(containers: Containers, time: Seconds = None, signal: Signal = None) -> int:
    """Restart one or more workloads.

    Examples:
      vmm restart -t 5 web
    """
    engine, seconds = context.engine(), _seconds(time)
    return for_each(containers, lambda name: engine.restart(name, seconds, signal))


def kill(containers: Containers, signal: Signal = None) -> int:
    """Kill one or more running workloads.

    Without --signal, KILL is sent.

    Examples:
      vmm kill web
      vmm kill -s HUP web
    """
    engine = context.engine()
    return for_each(containers, lambda name: engine.kill(name, signal or "KILL"))


def rm(
    containers: Containers,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Kill a running workload first")
    ] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", "-v", help="Remove its anonymous volumes too")
    ] = False,
) -> int:
    """Remove one or more workloads.

    Named volumes stay.

    Examples:
      vmm rm web
      vmm rm -fv web db
    """
    engine = context.engine()

    def remove(name: str) -> str | None:
        try:
            engine.remove(name, force=force, volumes=volumes)
        except NotFound as error:
            if not force:
                raise
            report(error)
            return SAID
        return None

    return for_each(containers, remove)


def rename(
    container: Container, new_name: Annotated[str, typer.Argument(metavar="NEW_NAME")]
) -> None:
    """Rename a workload.

    Examples:
      vmm rename web web-old
    """
    context.engine().rename(container, new_name)


def wait(containers: Containers) -> int:
    """Block until workloads stop, then print their exit codes.

    Examples:
      vmm wait job
    """
    return for_each(containers, lambda name: context.engine().wait(name))


def prune(
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
) -> int:
    """Remove all stopped workloads.

    Examples:
      vmm container prune -f
    """
    from vmm.cli.confirm import confirm, reclaiming

    if not confirm("This will remove all stopped workloads.", force):
        return 0
    engine = context.engine()
    stopped = [v.spec.id for v in engine.workloads(everything=True)
               if v.state.status in {"created", "exited", "dead"}]  # fmt: skip
    with reclaiming("Containers"):
        return for_each(stopped, engine.remove, heading="Deleted Containers:")
