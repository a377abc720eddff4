"""``vmm pause`` and ``vmm unpause``."""

from __future__ import annotations

from vmm.cli import context
from vmm.cli.context import for_each
from vmm.cli.lifecycle import Containers


def pause(containers: Containers) -> int:
    """Pause all processes of one or more workloads.

    Examples:
      vmm pause web
    """
    engine = context.engine()
    return for_each(containers, engine.pause)


def unpause(containers: Containers) -> int:
    """Let all processes of one or more paused workloads go on.

    Examples:
      vmm unpause web
    """
    engine = context.engine()
    return for_each(containers, engine.unpause)
