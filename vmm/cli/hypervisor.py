"""``vmm system libvirt``."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli import context
from vmm.cli.output import line
from vmm.model.errors import UsageError


def libvirt(
    action: Annotated[str, typer.Argument(metavar="start|stop|status")],
) -> None:
    """Start, stop or look at libvirt's daemons where no service manager does.

    Guests run on while libvirtd is stopped.

    Examples:
      vmm system libvirt start
      vmm system libvirt status
    """
    engine = context.engine()
    actions = {
        "start": engine.libvirt_start,
        "stop": engine.libvirt_stop,
        "status": engine.libvirt_status,
    }
    if action not in actions:
        raise UsageError(f"no such action {action!r:.40}", "write start, stop or status")
    for text in actions[action]():
        line(text)
