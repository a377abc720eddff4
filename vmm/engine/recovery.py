"""What killed commands left behind: finished or undone before the next change."""

from __future__ import annotations

import shutil

from vmm.engine.context import Context
from vmm.state.journal import Entry


def recover(ctx: Context) -> list[Entry]:
    """Settle every unfinished journal entry whose writer died."""
    return ctx.journal.recover(lambda entry: _settle(ctx, entry))


def _settle(ctx: Context, entry: Entry) -> None:
    from vmm.engine import lifecycle
    from vmm.engine.status import LIVE, settle, shim_alive

    with ctx.lock(entry.workload):
        registered = ctx.store.registered(entry.workload)
        if entry.action == "create" and not registered:
            shutil.rmtree(ctx.store.path(entry.workload), ignore_errors=True)
            ctx.index.remove(entry.workload)
        elif entry.action == "remove":
            lifecycle.purge(ctx, entry.workload, volumes=False)
        elif entry.action == "start" and registered:
            state = settle(ctx, entry.workload)
            if state.status in LIVE:
                return
            if shim_alive(state):
                lifecycle.end(ctx, entry.workload, 9, 0)
            lifecycle.release(ctx, ctx.store.read(entry.workload))
