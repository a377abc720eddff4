"""Capability sets (capabilities(7)): names, Docker's default, and what a workload ends up with."""

from __future__ import annotations

from typing import NamedTuple

from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported
from vmm.model.spec import Security

#: By number (linux/capability.h).
NAMES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
BIT = {name: 1 << number for number, name in enumerate(NAMES)}
ALL = (1 << len(NAMES)) - 1

#: What Docker grants without being asked (docker-run(1), --cap-add).
DEFAULT = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)


class CapabilitySets(NamedTuple):
    """The five sets of a process, as bit masks."""

    bounding: int = 0
    permitted: int = 0
    effective: int = 0
    inheritable: int = 0
    ambient: int = 0

    def hexadecimal(self) -> tuple[str, ...]:
        return tuple(f"{mask:x}" for mask in self)


def mask_of(names: tuple[str, ...]) -> int:
    """The bit mask of capability names, each known."""
    mask = 0
    for name in names:
        mask |= BIT[name]
    return mask


def names_of(mask: int) -> tuple[str, ...]:
    """The names in a bit mask, by number."""
    return tuple(name for name, bit in BIT.items() if mask & bit)


def parse(names: tuple[str, ...], option: str) -> tuple[bool, int]:
    """Whether ``ALL`` is among ``names``, and the mask of the others; Unsupported if unknown."""
    everything, mask = False, 0
    for given in names:
        name = given.upper().removeprefix("CAP_")
        if name == "ALL":
            everything = True
        elif name in BIT:
            mask |= BIT[name]
        else:
            raise Unsupported(
                f"{option} {given}: no such capability",
                "capabilities(7) lists them; write NET_ADMIN or CAP_NET_ADMIN, or ALL",
            )
    return everything, mask


def wanted(security: Security) -> int:
    """The capabilities asked for, before the host's bounding set (Docker's rules)."""
    if security.privileged:
        return ALL
    add_all, add = parse(security.cap_add, "--cap-add")
    drop_all, drop = parse(security.cap_drop, "--cap-drop")
    if add_all:
        return ALL & ~drop
    if drop_all:
        return add
    return mask_of(DEFAULT) & ~drop | add


def limits_devices(facts: HostFacts) -> bool:
    """Whether the host can enforce a device list (which MKNOD needs to be harmless)."""
    return lists_devices_v1(facts) or programs_devices(facts)


def lists_devices_v1(facts: HostFacts) -> bool:
    """A devices controller of cgroup v1 (admin-guide/cgroup-v1/devices.rst)."""
    return any(g.version == 1 and "devices" in g.controllers for g in facts.cgroups)


def programs_devices(facts: HostFacts) -> bool:
    """Only cgroup2 is there for it, where a BPF program decides (admin-guide/cgroup-v2.rst)."""
    return (
        facts.device_programs
        and not lists_devices_v1(facts)
        and any(group.version == 2 for group in facts.cgroups)
    )


def bounding(security: Security, facts: HostFacts) -> int:
    """The most that any process of the workload can have."""
    mask = wanted(security) & facts.cap_bounding
    if security.privileged or limits_devices(facts):
        return mask
    return mask & ~BIT["MKNOD"]


def sets_for(security: Security, facts: HostFacts, uid: int) -> CapabilitySets:
    """What the process gets. Nothing is inheritable, and only root has any in effect: another
    user's programs may gain from the bounding set by file capabilities alone."""
    most = bounding(security, facts)
    held = most if uid == 0 else 0
    return CapabilitySets(most, held, held)
