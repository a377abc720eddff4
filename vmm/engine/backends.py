"""Which backends exist, which one a workload gets, and why."""

from __future__ import annotations

import os
from importlib import import_module

from vmm.model.backend import Backend, Capability
from vmm.model.errors import Unsupported, UsageError
from vmm.model.platform import architecture as architecture_of

#: Backends of this distribution; others join through the entry points ``vmm.backends``.
BUILT_IN = {"container": "vmm.backends.container:ContainerBackend"}
#: Not part of this version: refused by name, never taken for a typing error.
PLANNED = ("jail", "vm", "kvm", "qemu", "xen", "bhyve")


def names() -> list[str]:
    """Every known backend, built in first."""
    from importlib.metadata import entry_points

    found = [e.name for e in entry_points(group="vmm.backends") if e.name not in BUILT_IN]
    return [*BUILT_IN, *sorted(found)]


def load(name: str) -> Backend:
    """The backend called ``name``; imported only now."""
    target = BUILT_IN.get(name) or _entry_point(name)
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def _entry_point(name: str) -> str:
    from importlib.metadata import entry_points

    for entry in entry_points(group="vmm.backends", name=name):
        return entry.value
    if name in PLANNED:
        raise Unsupported(
            f"backend {name} is not part of this version of vmm", "use --backend container"
        )
    raise UsageError(f"unknown backend {name!r}", f"choose one of: auto, {', '.join(names())}")


def choose(wanted: str, system: str, architecture: str) -> tuple[str, str]:
    """The backend of a workload and the reason; a named backend never becomes another."""
    if wanted != "auto":
        load(wanted)
        return wanted, "named"
    uname = os.uname()
    host_os, host = uname.sysname.lower(), architecture_of(uname.machine)
    if (system, architecture) == (host_os, host) and host_os == "linux":
        return "container", f"the image is for this host ({system}/{architecture})"
    raise Unsupported(
        f"the image is for {system}/{architecture}, this host is {host_os}/{host}",
        "this needs a virtual machine, which this version of vmm does not run; "
        "use an image for this host",
    )


def probe() -> list[tuple[str, list[Capability]]]:
    """Each backend with its capabilities and the reasons for what is missing."""
    from vmm.network.probe import capabilities
    from vmm.ports.runner import HostRunner

    found = [(name, load(name).probe()) for name in names()]
    found.append(("network", capabilities(HostRunner())))
    missing = "not part of this version of vmm"
    for name in PLANNED:
        found.append((name, [Capability(name=name, available=False, reason=missing)]))
    return found
