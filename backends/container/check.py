"""Options that containers or this host cannot honour are errors, never dropped."""

from __future__ import annotations

from vmm.backends.linux import capabilities, cgroups
from vmm.backends.linux.check import check as check_linux
from vmm.backends.linux.check import cpuset
from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported, UsageError
from vmm.model.spec import Resources, WorkloadSpec

#: Below this not even a shell starts (Docker's minimum).
MEMORY_MIN = 6 << 20


def check(spec: WorkloadSpec, facts: HostFacts) -> None:
    """Raise Unsupported, or UsageError for a value that no host could honour."""
    _platform(spec, facts)
    _memory(spec.resources, facts)
    check_linux(spec, facts)
    _controllers(spec, facts)
    _devices(spec, facts)


def _platform(spec: WorkloadSpec, facts: HostFacts) -> None:
    ours, theirs = (facts.os, facts.architecture), (spec.os, spec.architecture)
    compatible = ours == theirs or (*ours, *theirs) == ("linux", "amd64", "linux", "386")
    if not compatible:
        raise Unsupported(
            f"backend container: image {spec.image} is for {'/'.join(theirs)}, "
            f"this host is {'/'.join(ours)}",
            "containers share the host's kernel; use an image for this platform, "
            "or a virtual machine (--backend vm)",
        )


def _memory(resources: Resources, facts: HostFacts) -> None:
    memory = resources.memory
    if memory and memory < MEMORY_MIN:
        raise UsageError(f"--memory {memory}: less than the minimum of {MEMORY_MIN} bytes (6 MiB)")
    if memory and resources.memory_swap and not facts.swap_limit:
        raise Unsupported(
            "--memory-swap: backend container: this kernel does not limit swap",
            "boot it with swapaccount=1, or leave the option out",
        )


_REMEDY = {
    "memory": "boot with cgroup_enable=memory, or leave the option out",
    "cpuset": "mount or enable the cpuset controller, or leave the option out",
}


def _controllers(spec: WorkloadSpec, facts: HostFacts) -> None:
    available = {name for group in facts.cgroups for name in group.controllers}
    for controller, option in cgroups.needed(spec.resources, spec.security).items():
        if controller not in available:
            raise Unsupported(
                f"{option}: backend container: this host has no writable cgroup "
                f"controller {controller!r}",
                _REMEDY.get(controller, "enable it (cgroups(7)), or leave the option out"),
            )
    if spec.resources.cpuset_cpus:
        cpuset(spec.resources.cpuset_cpus, facts.cpuset_cpus)


def _devices(spec: WorkloadSpec, facts: HostFacts) -> None:
    """Without a device list nothing but the absence of nodes keeps devices away."""
    if spec.security.privileged or capabilities.limits_devices(facts):
        return
    asked = [f"--device {device.host_path}" for device in spec.resources.devices]
    if capabilities.parse(spec.security.cap_add, "--cap-add")[1] & capabilities.BIT["MKNOD"]:
        asked.append("--cap-add MKNOD")
    if asked:
        reason = facts.device_programs_reason or "no device programs on cgroup2"
        raise Unsupported(
            f"{asked[0]}: backend container: this host has no control over devices: "
            f"no devices controller of cgroup v1, and {reason}",
            "use a host that has, or --privileged, which gives all devices",
        )
