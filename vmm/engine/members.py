"""The names that workloads of a network know each other by (their ``/etc/hosts``)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmm.engine.context import Context
from vmm.engine.launching import ATTACHMENT
from vmm.model.errors import CorruptStore, VmmError
from vmm.model.ids import short
from vmm.model.network import Member
from vmm.model.spec import WorkloadSpec


def member(ctx: Context, spec: WorkloadSpec) -> Member:
    """How ``spec`` appears to its neighbours."""
    network = spec.network
    fqdn = full_hostname(spec)
    names = (fqdn, fqdn.partition(".")[0], spec.name, short(spec.id), *network.aliases)
    return Member(
        workload=spec.id,
        address=network.address,
        names=tuple(dict.fromkeys(name for name in names if name)),
        hosts_path=ctx.paths(spec.id).hosts,
        backend=spec.backend,
        extra_hosts=network.extra_hosts,
    )


def full_hostname(spec: WorkloadSpec) -> str:
    """The host name with its domain, if it has one."""
    network = spec.network
    return network.hostname + (f".{network.domainname}" if network.domainname else "")


def members(
    ctx: Context, *, leaving: str = "", joining: WorkloadSpec | None = None
) -> list[Member]:
    """Workloads on the bridge network that run or are about to: those that have an attachment.

    Two that start at once so know each other, whichever of them comes last.
    """
    found = [member(ctx, joining)] if joining else []
    for workload in sorted(set(ctx.index.addresses(ctx.bridge_id).values())):
        if workload == leaving or (joining and workload == joining.id):
            continue
        if not ctx.store.registered(workload):
            continue
        if not (ctx.store.path(workload) / ATTACHMENT).exists():
            continue
        with contextlib.suppress(CorruptStore):  # a damaged one stands in nobody's way
            found.append(member(ctx, ctx.store.read(workload)))
    return found


def rewrite_hosts(ctx: Context, *, leaving: str = "", joining: WorkloadSpec | None = None) -> None:
    """Let every running member know every other, under the network's lock."""
    gateway = ctx.network.inspect("bridge").gateway
    changed = ctx.names.update(gateway, lambda: members(ctx, leaving=leaving, joining=joining))
    for one in changed:
        if not joining or one.workload != joining.id:
            _push(ctx, one)


def _push(ctx: Context, one: Member) -> None:
    """Hand the new hosts file to a member that has a copy of it; one that cannot take it now (it
    just starts or ends) reads it at its next start."""
    with contextlib.suppress(VmmError, OSError):
        if ctx.backend(one.backend).shares_files:
            return
        from vmm.control.client import Control

        text = Path(one.hosts_path).read_bytes()
        with Control.connect(str(ctx.run_dir / short(one.workload) / "ctl.sock"), 2.0) as control:
            control.file("/etc/hosts", text)


def write_own_files(ctx: Context, spec: WorkloadSpec) -> None:
    """``/etc/hosts``, ``/etc/hostname`` and ``/etc/resolv.conf`` of a workload about to start."""
    from vmm.network import names

    paths = ctx.paths(spec.id)
    network = spec.network
    names.rewrite(paths.hostname, full_hostname(spec) + "\n")
    text = names.resolv_conf(
        names.host_resolv(),
        dns=network.dns,
        search=network.dns_search,
        options=network.dns_options,
        loopback_ok=network.mode != "bridge",
    )
    names.rewrite(paths.resolv_conf, text)
    if network.mode == "bridge":
        rewrite_hosts(ctx, joining=spec)
    elif network.mode == "host":
        names.rewrite(paths.hosts, _read("/etc/hosts"))
    else:
        names.rewrite(paths.hosts, names.render_hosts(member(ctx, spec)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
