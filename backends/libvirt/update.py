"""Changed limits of a guest: what its hypervisor can do while it runs."""

from __future__ import annotations

from vmm.backends.libvirt import naming, sizing
from vmm.backends.libvirt.metadata import decode
from vmm.backends.libvirt.port import Libvirt
from vmm.backends.linux.cgroups import CPU_PERIOD
from vmm.backends.linux.mountinfo import parse_cpu_list
from vmm.model.backend import CompileInput
from vmm.model.errors import Unsupported
from vmm.model.spec import Resources

_KIB_PER_MIB = 1024


def update(libvirt: Libvirt, given: CompileInput) -> None:
    """Apply the limits to the running guest: memory by the balloon, CPU time by libvirt's
    control groups. Unsupported, before anything is changed, for what waits for its next start."""
    uuid = naming.uuid(given.spec.id)
    largest, present = libvirt.memory(uuid)
    if not largest:
        return
    wanted, cpus = sizing.memory_kib(given), libvirt.processors(uuid)
    if wanted > largest:
        raise _later(given, f"--memory {wanted // _KIB_PER_MIB}m", f"{largest // 1024} MiB")
    slows = sizing.quota(given.spec.resources, cpus) > 0
    if sizing.processors(given.spec.resources) > cpus or (slows and not given.host.cgroups):
        raise _later(given, "--cpus", f"{cpus} CPU{'' if cpus == 1 else 's'}")
    before = _recorded(libvirt, given)
    if given.spec.resources.pids_limit != before.pids_limit:
        raise _later(given, "--pids-limit", f"a limit of {before.pids_limit or 'none'}")
    if wanted != present:
        libvirt.set_memory(uuid, wanted)
    _tune(libvirt, given, before, cpus)


def _later(given: CompileInput, option: str, had: str) -> Unsupported:
    name = given.spec.name
    return Unsupported(
        f"{option}: backend {given.spec.backend}: the guest was started with {had}, "
        "which it keeps while it runs",
        f"vmm stop {name}, update it, then start it again",
    )


def _recorded(libvirt: Libvirt, given: CompileInput) -> Resources:
    """The limits as they were recorded last."""
    document = libvirt.recorded(naming.uuid(given.spec.id))
    spec = decode(document, given.cgroup_parent) if document else None
    return spec.resources if spec else given.spec.resources


def _tune(libvirt: Libvirt, given: CompileInput, before: Resources, cpus: int) -> None:
    """What was never asked for is left alone."""
    uuid, now = naming.uuid(given.spec.id), given.spec.resources
    parameters = {}
    if now.cpu_shares:
        parameters["cpu_shares"] = sizing.shares(now.cpu_shares, given.host)
    if given.host.cgroups and (now.nano_cpus or before.nano_cpus):
        parameters["vcpu_period"] = CPU_PERIOD
        parameters["vcpu_quota"] = sizing.quota(now, cpus)
    if parameters:
        libvirt.tune(uuid, parameters)
    if now.cpuset_cpus:
        chosen = parse_cpu_list(now.cpuset_cpus)
        count = max(given.host.cpus, max(chosen) + 1)
        libvirt.pin(uuid, tuple(number in chosen for number in range(count)))
