"""Memory and processors of a guest: limits of a container become its size."""

from __future__ import annotations

import math

import msgspec

from vmm.backends.linux.cgroups import CPU_PERIOD, CPU_QUOTA_MIN, cpu_weight
from vmm.model.backend import CompileInput, HostFacts
from vmm.model.spec import Resources

#: The least memory that kernel, initramfs and a small program run in.
MEMORY_MIN = 96 << 20
_KIB = 1024


def memory_kib(given: CompileInput) -> int:
    """Memory of the guest in KiB, whole MiB."""
    size = given.spec.resources.memory or given.guest_memory
    return -(-size // (1 << 20)) * _KIB


def processors(resources: Resources) -> int:
    """Virtual CPUs: enough for ``--cpus``, else one."""
    return max(1, math.ceil((resources.nano_cpus or 0) / 10**9))


def quota(resources: Resources, cpus: int) -> int:
    """Microseconds that each of a guest's ``cpus`` may run per CPU_PERIOD; -1 without a limit.
    Whole CPUs need none."""
    asked = resources.nano_cpus
    if not asked or asked == cpus * 10**9:
        return -1
    return max(CPU_QUOTA_MIN, asked * CPU_PERIOD // (cpus * 10**9))


def shares(asked: int, facts: HostFacts) -> int:
    """``--cpu-shares`` as libvirt takes them: with cgroup v2 it writes them to cpu.weight
    (formatdomain.html, "shares")."""
    unified = any(group.version == 2 and "cpu" in group.controllers for group in facts.cgroups)
    return cpu_weight(asked) if unified else asked


def inside(resources: Resources) -> Resources:
    """What is left to the guest's own control groups: the number of processes."""
    return msgspec.structs.replace(
        resources,
        memory=None,
        memory_swap=None,
        nano_cpus=None,
        cpu_shares=None,
        cpuset_cpus="",
    )
