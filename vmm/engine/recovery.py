"""What killed commands left behind: finished or undone before the next change."""

from __future__ import annotations

import os

from vmm.engine.context import Context
from vmm.model.errors import VmmError
from vmm.model.ids import short
from vmm.state.journal import Entry


def recover(ctx: Context) -> None:
    """Settle every unfinished journal entry whose writer died, and remove abandoned builds; stock
    the reserve up.

    One that cannot be settled is said, and stays for the next command: it stops no other change.
    """
    for path, entry in ctx.journal.unfinished():
        try:
            with ctx.lock(entry.workload):
                _settle(ctx, entry)
        except (VmmError, OSError) as error:
            ctx.notices.append(
                f"the unfinished {entry.action} of {short(entry.workload)} is not settled: {error}"
            )
            continue
        path.unlink(missing_ok=True)
        if not ctx.store.path(entry.workload).is_dir():
            (ctx.run_dir / "locks" / entry.workload).unlink(missing_ok=True)
    ctx.journal.sweep()
    for name in abandoned_builds(ctx):
        remove_build(ctx, name)
    ctx.reserve.stock()


def _settle(ctx: Context, entry: Entry) -> None:
    """Finish or undo a change (the workload's lock is held)."""
    from vmm.engine import lifecycle

    workload, registered = entry.workload, ctx.store.registered(entry.workload)
    if entry.action == "step":
        from vmm.engine.runstep import drop_step

        drop_step(ctx, workload, entry.backend)
    elif entry.action == "remove":
        lifecycle.purge(ctx, workload, volumes=entry.volumes)
    elif not registered:
        lifecycle.undo_create(ctx, workload)
    elif entry.action == "start":
        _settle_start(ctx, workload)
    elif entry.action == "rename":
        _settle_rename(ctx, workload)
    elif entry.action == "update":
        from vmm.engine import launching, updating

        spec = ctx.store.read(workload)
        updating.apply(ctx, spec)
        launching.record_change(ctx, spec)


def _settle_start(ctx: Context, workload: str) -> None:
    """A workload that got as far as running goes on; else all that the start took is released."""
    from vmm.engine import lifecycle
    from vmm.engine.status import LIVE, settle

    if settle(ctx, workload).status not in LIVE:
        lifecycle.end_shim(ctx, workload, 9, 0)
        lifecycle.clear(ctx, workload)


def _settle_rename(ctx: Context, workload: str) -> None:
    """The index claimed the new name first: the spec follows."""
    import msgspec

    from vmm.engine import launching

    spec, row = ctx.store.read(workload), ctx.index.lookup(workload)
    if spec.name != row.name:
        spec = msgspec.structs.replace(spec, name=row.name)
        ctx.store.write(spec)
    launching.record_change(ctx, spec)


def abandoned_builds(ctx: Context) -> list[str]:
    """Build directories whose builder died (it held a lock while it lived)."""
    import fcntl

    found = []
    for name in os.listdir(ctx.root / "builds"):
        try:
            fd = os.open(ctx.root / "builds" / name / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if _is_old(ctx, name):
                found.append(name)
            continue
        except NotADirectoryError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(name)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
    return found


def _is_old(ctx: Context, name: str) -> bool:
    """Whether a build directory without a lock cannot be one that is just being made (2 s)."""
    import time

    try:
        return time.time() - os.stat(ctx.root / "builds" / name).st_mtime > 2
    except FileNotFoundError:
        return False


def remove_build(ctx: Context, name: str) -> None:
    from vmm.storage.tree import remove_tree

    remove_tree(str(ctx.root / "builds" / name))
