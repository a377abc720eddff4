"""Which backends exist, which one a workload gets, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from vmm.model.backend import Backend, BackendOptions, Capability
from vmm.model.errors import Unsupported, UsageError
from vmm.model.platform import architecture as architecture_of

#: Backends of this distribution; others join through the entry points ``vmm.backends``.
BUILT_IN = {
    "container": "vmm.backends.container:ContainerBackend",
    "kvm": "vmm.backends.libvirt:KvmBackend",
    "qemu": "vmm.backends.libvirt:QemuBackend",
}
#: Those that run guests, the one that ``vm`` prefers first.
GUESTS = ("kvm", "qemu")
#: Not part of this version: refused by name, never taken for a typing error.
PLANNED = ("jail", "xen", "bhyve")


def names() -> list[str]:
    """Every known backend, built in first."""
    from importlib.metadata import entry_points

    found = {e.name for e in entry_points(group="vmm.backends")} - set(BUILT_IN)
    return [*BUILT_IN, *sorted(found)]


def load(name: str, options: BackendOptions | None = None) -> Backend:
    """The backend called ``name``; imported only now."""
    target = BUILT_IN.get(name) or _entry_point(name)
    module, _, attribute = target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(options)
    return backend


def _entry_point(name: str) -> str:
    from importlib.metadata import entry_points

    for entry in entry_points(group="vmm.backends", name=name):
        return entry.value
    if name in PLANNED:
        raise Unsupported(
            f"backend {name} is not part of this version of vmm",
            "use --backend container, or --backend vm",
        )
    known = ", ".join(("auto", "vm", *names()))
    raise UsageError(f"unknown backend {name!r}", f"choose one of: {known}")


def choose(
    wanted: str, system: str, architecture: str, made: Callable[[str], Backend] | None = None
) -> tuple[str, str]:
    """The backend of a workload and the reason; a named backend never becomes another.

    ``made`` gives the backend of a name, as the caller goes on to use it.
    """
    made = made or (lambda name: load(name, None))
    if wanted == "auto":
        return _automatic(system, architecture)
    if wanted != "vm" and wanted not in GUESTS:
        made(wanted)
        return wanted, "named"
    _same_processor(wanted, system, architecture)
    if wanted == "vm":
        return _machine(made)
    itself = made(wanted).probe()[0]
    if not itself.available:
        raise Unsupported(f"backend {wanted} cannot run here: {itself.reason}", _instead(wanted))
    return wanted, "named"


def _host() -> tuple[str, str]:
    uname = os.uname()
    return uname.sysname.lower(), architecture_of(uname.machine)


def _automatic(system: str, architecture: str) -> tuple[str, str]:
    """A container where the host's kernel runs the image; else it takes a machine of its own."""
    host_os, host = _host()
    if (system, architecture) == (host_os, host) and host_os == "linux":
        return "container", f"the image is for this host ({system}/{architecture})"
    _same_processor("auto", system, architecture)
    return "container", f"this host runs {system}/{architecture} too"


def _same_processor(backend: str, system: str, architecture: str) -> None:
    """Guests have the host's kind of processor, and a Linux kernel."""
    host_os, host = _host()
    if system == "linux" and (architecture == host or (host, architecture) == ("amd64", "386")):
        return
    raise Unsupported(
        f"backend {backend}: the image is for {system}/{architecture}, this host is "
        f"{host_os}/{host}",
        "guests of other systems and processors are not part of this version of vmm; "
        "use an image for this host",
    )


def _machine(made: Callable[[str], Backend]) -> tuple[str, str]:
    """``vm``: hardware if it can, else emulation, and why."""
    reasons: list[str] = []
    for name in GUESTS:
        itself = made(name).probe()[0]
        if itself.available:
            why = "; ".join((*reasons, f"{name}: {itself.reason}" if itself.reason else name))
            return name, why
        reasons.append(f"no {name}: {itself.reason}")
    raise Unsupported(
        f"backend vm: no virtual machine can run here: {'; '.join(reasons)}",
        "see vmm backends; or use --backend container",
    )


def _instead(wanted: str) -> str:
    if wanted == "kvm":
        return "--backend qemu emulates (slower); --backend vm takes what there is"
    return "see vmm backends; or use --backend container"


def probe(options: BackendOptions | None = None) -> list[tuple[str, list[Capability]]]:
    """Each backend with its capabilities and the reasons for what is missing."""
    from vmm.network.probe import capabilities
    from vmm.ports.runner import HostRunner

    found = [(name, load(name, options).probe()) for name in names()]
    found.append(("network", capabilities(HostRunner())))
    missing = "not part of this version of vmm"
    for name in PLANNED:
        found.append((name, [Capability(name=name, available=False, reason=missing)]))
    return found
