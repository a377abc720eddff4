"""What this host can do for containers, each with the reason."""

from __future__ import annotations

import os

from vmm.backends.container.facts import read
from vmm.backends.linux import capabilities
from vmm.model.backend import Capability, HostFacts

_NAMESPACES = ("pid", "mnt", "uts", "ipc", "net", "cgroup")
#: Controllers behind options, and the options.
_CONTROLLERS = {
    "memory": "--memory, --memory-swap",
    "cpu": "--cpus, --cpu-shares",
    "cpuset": "--cpuset-cpus",
    "pids": "--pids-limit",
}


def probe(facts: HostFacts) -> list[Capability]:
    """The backend itself first, then its parts."""
    needed = [_root(facts), _namespaces(), _overlay(), _mounts(facts)]
    missing = [capability for capability in needed if not capability.available]
    reason = "; ".join(capability.reason for capability in missing)
    itself = Capability(name="container", available=not missing, reason=reason)
    optional = [_seccomp(), _swap(facts), _devices(facts), _limits(facts)]
    return [itself, *needed, *_controllers(facts), *optional]


def _root(facts: HostFacts) -> Capability:
    if os.geteuid() != 0:
        return Capability(name="root", available=False, reason="not root: run vmm as root")
    if not facts.cap_bounding & capabilities.BIT["SYS_ADMIN"]:
        return Capability(name="root", available=False, reason="root without CAP_SYS_ADMIN")
    missing = capabilities.names_of(capabilities.ALL & ~facts.cap_bounding)
    reason = "without CAP_" + ", CAP_".join(missing) if missing else ""
    return Capability(name="root", available=True, reason=reason)


def _namespaces() -> Capability:
    missing = [kind for kind in _NAMESPACES if not os.path.exists(f"/proc/self/ns/{kind}")]
    reason = f"this kernel has no {', '.join(missing)} namespaces" if missing else ""
    return Capability(name="namespaces", available=not missing, reason=reason)


def _overlay() -> Capability:
    names = read("/proc/filesystems").split()
    there = "overlay" in names or os.path.exists("/sys/module/overlay")
    reason = "" if there else "this kernel has no overlayfs: modprobe overlay"
    return Capability(name="overlayfs", available=there, reason=reason)


def _mounts(facts: HostFacts) -> Capability:
    """openat2(2) is of 5.6, mount_setattr(2) of 5.12."""
    enough = facts.kernel >= (5, 12)
    found = ".".join(map(str, facts.kernel))
    reason = "" if enough else f"kernel {found} is older than 5.12 (mount_setattr(2))"
    return Capability(name="mount by descriptor", available=enough, reason=reason)


def _controllers(facts: HostFacts) -> list[Capability]:
    versions = {name: group.version for group in facts.cgroups for name in group.controllers}
    return [
        Capability(
            name=f"cgroup {name}",
            available=name in versions,
            reason=f"cgroup v{versions[name]}" if name in versions else f"no {options}",
        )
        for name, options in _CONTROLLERS.items()
    ]


def _seccomp() -> Capability:
    there = "errno" in read("/proc/sys/kernel/seccomp/actions_avail")
    reason = (
        "" if there else "this kernel has no seccomp filters: --security-opt seccomp=unconfined"
    )
    return Capability(name="seccomp", available=there, reason=reason)


def _swap(facts: HostFacts) -> Capability:
    reason = "" if facts.swap_limit else "no --memory-swap: boot with swapaccount=1"
    return Capability(name="swap limit", available=facts.swap_limit, reason=reason)


def _devices(facts: HostFacts) -> Capability:
    there = capabilities.limits_devices(facts)
    if capabilities.programs_devices(facts):
        reason = "BPF program on cgroup v2"
    elif there:
        reason = "cgroup v1"
    else:
        why = facts.device_programs_reason or "no devices controller"
        reason = f"no --device and no CAP_MKNOD without --privileged: {why}"
    return Capability(name="device list", available=there, reason=reason)


def _limits(facts: HostFacts) -> Capability:
    reason = "" if facts.can_raise_limits else "without CAP_SYS_RESOURCE: limits stay below these"
    return Capability(name="raise limits", available=facts.can_raise_limits, reason=reason)
