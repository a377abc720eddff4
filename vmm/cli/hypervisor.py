"""``vmm system libvirt``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line
from vmm.model.errors import UsageError

#: "program is not running" (systemctl(1), "Exit status").
NOT_RUNNING = 3


def libvirt(
    action: Annotated[str, typer.Argument(metavar="start|stop|status")],
) -> None:
    """Start, stop or look at libvirt's daemons where no service manager does.

    Guests run on while libvirtd is stopped. The exit code of status is 3 when libvirt does not
    answer, as systemctl's.

    Examples:
      vmm system libvirt start
      vmm system libvirt status
    """
    engine = context.engine()
    if action == "status":
        lines, answers = engine.libvirt_status()
        show(lines)
        if not answers:
            raise typer.Exit(NOT_RUNNING)
    elif action == "start":
        show(engine.libvirt_start())
    elif action == "stop":
        show(engine.libvirt_stop())
    else:
        raise UsageError(f"no such action {action!r:.40}", "write start, stop or status")


def show(lines: list[str]) -> None:
    for text in lines:
        line(text)
