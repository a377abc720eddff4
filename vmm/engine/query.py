"""Reading: lists, views, logs, explanations; and the metadata kept with a workload."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec

from vmm.engine import launching
from vmm.engine.context import Context
from vmm.engine.logs import LogLine, read
from vmm.engine.recovery import recover
from vmm.engine.status import LIVE, observe, seen
from vmm.engine.views import WorkloadView
from vmm.model.errors import Conflict, CorruptStore, UsageError
from vmm.model.ids import META_KEY

#: A metadata value may be this long (bytes): what every storage can hold (ZFS: 8191).
META_VALUE = 8000


def list_workloads(ctx: Context, *, everything: bool) -> list[WorkloadView]:
    """Views, newest first; running ones only unless ``everything``. Damaged ones are noticed."""
    views = []
    for row in ctx.index.rows():
        try:
            state = observe(ctx, row.id)
            if everything or state.status in LIVE:
                views.append(view(ctx, row.id))
        except CorruptStore as error:
            if ctx.store.registered(row.id):
                ctx.notices.append(error.message)
    return views


def view(ctx: Context, workload: str, *, whole: bool = False) -> WorkloadView:
    """One workload; ``whole``: with all that only inspect shows."""
    state = seen(ctx, workload)
    attached = launching.attachment(ctx, workload) if state.status in LIVE else None
    spec = ctx.store.read(workload)
    return WorkloadView(
        spec=spec,
        state=state,
        paths=ctx.paths(workload),
        endpoint=attached.endpoint if attached else None,
        ports=attached.ports if attached else (),
        volumes_root=str(ctx.root / "volumes"),
        network_id=ctx.bridge_id,
        storage=ctx.backend(spec.backend).storage if whole else "",
        probes=ctx.store.probes(workload) if whole and state.health else (),
    )


def logs(
    ctx: Context, reference: str, *, follow: bool, tail: int | None, since: str, until: str
) -> Iterator[LogLine]:
    """The workload's log; Conflict when it keeps none."""
    spec = ctx.store.read(ctx.index.lookup(reference).id)
    if spec.log.driver == "none":
        raise Conflict(
            'configured logging driver does not support reading: "none"',
            "run it with --log-driver json-file",
        )

    def going() -> bool:
        with contextlib.suppress(CorruptStore):
            return ctx.store.registered(spec.id) and observe(ctx, spec.id).status in LIVE
        return False

    path = ctx.paths(spec.id).log
    return read(path, tail=tail, since=since, until=until, follow=going if follow else None)


def explain(ctx: Context, reference: str, backend: str) -> str:
    """The launch plan of a workload, as its backend makes it of the stored spec."""
    spec = ctx.store.read(ctx.index.lookup(reference).id)
    name = backend or spec.backend
    ctx.backend(name).check(spec, ctx.facts(name))
    given = launching.compile_input(ctx, msgspec.structs.replace(spec, backend=name))
    heading = f"# workload {spec.name} ({spec.id[:12]}), backend {name}: {spec.backend_reason}\n"
    return heading + ctx.backend(name).compile(given).render()


def change_metadata(ctx: Context, reference: str, changes: dict[str, str | None]) -> None:
    """Set or remove keys in one atomic write beside the workload's storage."""
    faults = [key for key in changes if not META_KEY.match(key)]
    if faults:
        raise UsageError(
            f"invalid metadata key {faults[0]!r:.80}",
            "use lower-case letters, digits and : . _ - /, at most 200 of them",
        )
    for key, value in changes.items():
        if value is not None and len(value.encode()) > META_VALUE:
            raise UsageError(f"the value of {key} is longer than {META_VALUE} bytes")
    recover(ctx)
    with ctx.workload(reference) as workload:
        spec = ctx.store.read(workload)
        metadata = dict(spec.metadata)
        for key, value in changes.items():
            if value is None:
                metadata.pop(key, None)
            else:
                metadata[key] = value
        changed = msgspec.structs.replace(spec, metadata=metadata)
        ctx.store.write(changed)
        launching.record_change(ctx, changed)
    ctx.events.append("container", "update", workload, name=spec.name)
