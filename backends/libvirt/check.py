"""Options that a guest cannot honour are errors that name one who can, never dropped."""

from __future__ import annotations

import math

from vmm.backends.libvirt import guest, sizing
from vmm.backends.linux.check import check as check_linux
from vmm.backends.linux.check import cpuset
from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported, UsageError
from vmm.model.spec import Mount, WorkloadSpec

_PRIVATE = frozenset(("private", "rprivate"))
_CONTAINER = "use --backend container"


def check(spec: WorkloadSpec, facts: HostFacts) -> None:
    """Raise Unsupported, or UsageError for a value that no host could honour."""
    _platform(spec, facts)
    _memory(spec, facts)
    if spec.resources.cpuset_cpus:
        cpuset(spec.resources.cpuset_cpus, facts.cpuset_cpus)
    _processor_time(spec, facts)
    _host_things(spec)
    check_linux(spec, guest.host(facts), own_kernel=True)
    for mount in spec.mounts:
        _mount(mount, spec, facts)


def _platform(spec: WorkloadSpec, facts: HostFacts) -> None:
    if spec.os != "linux":
        raise Unsupported(
            f"backend {spec.backend}: image {spec.image} is for {spec.os}/{spec.architecture}; "
            "guests run Linux images alone",
            "use an image for linux",
        )
    theirs = spec.architecture
    if theirs != facts.architecture and (facts.architecture, theirs) != ("amd64", "386"):
        raise Unsupported(
            f"backend {spec.backend}: image {spec.image} is for the architecture {theirs}, this "
            f"host is {facts.architecture}: guests of foreign processors are not part of this "
            "version of vmm",
            f"use an image for {facts.architecture}",
        )


def _memory(spec: WorkloadSpec, facts: HostFacts) -> None:
    memory, total = spec.resources.memory, spec.resources.memory_swap
    if memory and memory < sizing.MEMORY_MIN:
        least = sizing.MEMORY_MIN >> 20
        raise UsageError(
            f"--memory {memory}: backend {spec.backend}: a guest has a kernel of its own and "
            f"needs at least {least} MiB",
            f"give --memory {least}m or more, or {_CONTAINER}",
        )
    if memory and facts.memory and memory > facts.memory:
        raise Unsupported(
            f"--memory {memory}: backend {spec.backend}: this host has {facts.memory} bytes",
            "give less",
        )
    if memory and total and total != memory:
        raise Unsupported(
            f"--memory-swap {total}: backend {spec.backend}: a guest has no swap",
            f"leave it out, or {_CONTAINER}",
        )


def _processor_time(spec: WorkloadSpec, facts: HostFacts) -> None:
    """A part of the CPUs' time is libvirt's to give, by its control groups."""
    if facts.cgroups:
        return
    why = no_groups(facts)
    if spec.resources.cpu_shares:
        raise Unsupported(
            f"--cpu-shares {spec.resources.cpu_shares}: backend {spec.backend}: {why}",
            f"leave it out, or {_CONTAINER}",
        )
    if sizing.quota(spec.resources, sizing.processors(spec.resources)) > 0:
        asked = (spec.resources.nano_cpus or 0) / 10**9
        raise Unsupported(
            f"--cpus {asked:g}: backend {spec.backend}: {why}",
            f"give the guest whole CPUs (--cpus {math.ceil(asked)}), or {_CONTAINER}",
        )


def no_groups(facts: HostFacts) -> str:
    """Why libvirt divides no CPU here."""
    if facts.hypervisor and facts.hypervisor.session:
        return f"a session of libvirt ({facts.hypervisor.uri}) has no control groups"
    return "libvirt finds no control group controller cpu on this host"


def _host_things(spec: WorkloadSpec) -> None:
    """What only a process of the host can have."""
    if spec.network.mode == "host":
        raise Unsupported(
            f"--network host: backend {spec.backend}: a guest has a network of its own",
            f"use --network bridge and publish ports, or {_CONTAINER}",
        )
    for device in spec.resources.devices:
        raise Unsupported(
            f"--device {device.host_path}: backend {spec.backend}: "
            "devices of the host are not handed to guests",
            _CONTAINER,
        )


def _mount(mount: Mount, spec: WorkloadSpec, facts: HostFacts) -> None:
    if mount.kind == "tmpfs":
        return
    if mount.propagation not in _PRIVATE:
        raise Unsupported(
            f"mount {mount.target}: backend {spec.backend}: propagation {mount.propagation!r} "
            "does not cross into a guest",
            f"use rprivate, or {_CONTAINER}",
        )
    if facts.hypervisor and facts.hypervisor.session:
        raise Unsupported(
            f"mount {mount.target}: backend {spec.backend}: a session of libvirt "
            f"({facts.hypervisor.uri}) shares no files of the host: QEMU's user may not read them",
            f"copy them in with vmm cp, use libvirt_uri: qemu:///system, or {_CONTAINER}",
        )
    if facts.hypervisor and not facts.hypervisor.virtiofsd:
        raise Unsupported(
            f"mount {mount.target}: backend {spec.backend}: there is no virtiofsd here",
            f"apt install qemu-system-common (or virtiofsd), or {_CONTAINER}",
        )
