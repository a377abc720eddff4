"""``vmm system``, ``vmm info`` and ``vmm version``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vmm.cli import context
from vmm.cli.listing import Format
from vmm.cli.output import line, note, print_inspected, print_rows

Shown = Annotated[
    str | None, typer.Option("--format", "-f", help="json, 'table TEMPLATE' or a Go template")
]


def version(format: Shown = None) -> None:
    """Show the version of vmm.

    Examples:
      vmm version
      vmm version --format '{{.Version}}'
    """
    import os
    import platform

    from vmm import __version__

    host = os.uname()
    facts = {
        "Version": __version__,
        "Python": platform.python_version(),
        "Os": host.sysname.lower(),
        "Arch": host.machine,
        "KernelVersion": host.release,
    }
    _print_facts(facts, format)


def info(format: Shown = None) -> None:
    """Show the instance and the host.

    Examples:
      vmm info
      vmm system info --format '{{json .Backends}}'
    """
    facts = context.engine().info()
    warnings = facts.get("Warnings", [])
    shown = facts if format else {k: v for k, v in facts.items() if k != "Warnings"}
    _print_facts(shown, format)
    for warning in [] if format else warnings:
        note(f"WARNING: {warning}")


def _print_facts(facts: dict[str, Any], form: str | None) -> None:
    if form == "json":
        from vmm.model.gotext import to_json

        line(to_json(facts))
    elif form:
        print_inspected([facts], form)
    else:
        _print_tree(facts, "")


def _print_tree(facts: dict[str, Any], indent: str) -> None:
    """``Key: value`` lines, nested mappings indented."""
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            line(f"{indent}{key}:")
            _print_tree(value, indent + "  ")
        elif value not in ({}, [], ""):
            line(f"{indent}{key}: {str(value).lower() if isinstance(value, bool) else value}")


def df(format: Format = None) -> None:
    """Show how much storage is used.

    Layers that images share are counted once.

    Examples:
      vmm system df
      vmm system df --format json
    """
    from vmm.model.human import size

    rows = []
    for row in context.engine().df():
        share = f" ({100 * row['Reclaimable'] // row['Size']}%)" if row["Size"] else ""
        rows.append({
            "Type": row["Type"],
            "TotalCount": str(row["TotalCount"]),
            "Active": str(row["Active"]),
            "Size": size(row["Size"]),
            "Reclaimable": size(row["Reclaimable"]) + share,
        })  # fmt: skip
    default = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
    print_rows(rows, format, default, {"TotalCount": "TOTAL"})


def check(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended")] = False,
) -> int:
    """Look for faults, and mend them with --repair.

    Exits with 1 when faults were found (with --repair: when some are left).

    Examples:
      vmm system check
      vmm system check --repair
    """
    engine = context.engine()
    faults = engine.check(repair=repair)
    for fault in faults:
        line(fault)
    if not repair:
        return 1 if faults else 0
    left = engine.check() if faults else []
    for fault in left:
        note(f"not mended: {fault}")
    return 1 if left else 0


def rebuild() -> int:
    """Make the index anew from storage.

    Exits with 1 when a workload's documents are damaged.

    Examples:
      vmm system rebuild
    """
    damaged = context.engine().rebuild()
    for identity in damaged:
        note(f"vmm: workload {identity} is damaged\n  vmm rm -f {identity} removes it")
    return 1 if damaged else 0


def prune(
    all: Annotated[
        bool, typer.Option("--all", "-a", help="Remove all unused images, not only dangling ones")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask")] = False,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove unused anonymous volumes too")
    ] = False,
) -> None:
    """Remove all that is not used.

    That is stopped workloads, dangling images, the build cache, and volumes if asked for.

    Examples:
      vmm system prune -f
      vmm system prune -a --volumes
    """
    from vmm.cli.confirm import confirm
    from vmm.model.human import size

    if not confirm("This will remove stopped workloads, unused images and the cache.", force):
        return
    done = context.engine().prune(all_images=all, volumes=volumes)
    for key, title in (("containers", "Containers"), ("volumes", "Volumes"), ("images", "Images")):
        if done.get(key):
            line(f"Deleted {title}:")
            for name in done[key]:
                line(str(name))
            line("")
    line(f"Total reclaimed space: {size(done.get('freed', 0))}")


def boot() -> None:
    """Repair after a boot, and start what asks for it.

    Those with the restart policies always, and unless-stopped if they were not stopped by hand.

    Examples:
      vmm system boot
    """
    for name in context.engine().boot():
        line(name)


def reap(container: Annotated[str, typer.Argument(metavar="CONTAINER")]) -> None:
    """Release what an ended workload held.

    The shim runs it when no vmm process waits for its workload; it may be run at any time.

    Examples:
      vmm system reap web
    """
    context.engine().reap(container)


def teardown() -> None:
    """Remove the instance's bridge and firewall rules.

    Refused while a workload is attached; the next start makes them anew.

    Examples:
      vmm system teardown
    """
    context.engine().teardown()
