"""Control groups of a workload, as operations of a launch plan.

A workload has a group only in the hierarchies that a limit, statistics, the device list or
killing and freezing need.  Version 1 files are those of the kernel's
admin-guide/cgroup-v1, version 2 those of admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from vmm.backends.linux.capabilities import programs_devices
from vmm.backends.linux.device_program import program
from vmm.backends.linux.devices import rules
from vmm.model.backend import CgroupHierarchy, CompileInput, HostFacts
from vmm.model.launch import Op, encode_ops, op
from vmm.model.spec import Resources, Security, WorkloadSpec

#: Microseconds over which a CPU quota counts (the kernel's default).
CPU_PERIOD = 100_000
#: The kernel refuses quotas below a millisecond.
CPU_QUOTA_MIN = 1_000

_ALWAYS = ("memory", "pids", "cpuacct", "freezer")
#: On cgroup2 every group accounts CPU time and can be frozen and killed.
_USED_V2 = ("memory", "pids", "cpu", "cpuset", "io")


class Group(NamedTuple):
    """The workload's own directory in one hierarchy, and what is used there."""

    hierarchy: CgroupHierarchy
    parent: str
    directory: str
    controllers: tuple[str, ...]


def needed(resources: Resources, security: Security) -> dict[str, str]:
    """Controllers that an option of the workload cannot do without, and that option."""
    wants = {
        "memory": ("--memory", resources.memory or resources.memory_swap),
        "cpu": ("--cpus", resources.nano_cpus),
        "cpuset": ("--cpuset-cpus", resources.cpuset_cpus),
        "pids": ("--pids-limit", (resources.pids_limit or 0) > 0),
    }
    found = {name: option for name, (option, asked) in wants.items() if asked}
    if resources.cpu_shares:
        found.setdefault("cpu", "--cpu-shares")
    return found


def groups(spec: WorkloadSpec, facts: HostFacts, parent: str) -> list[Group]:
    """Where the workload gets groups of its own, in the order of the host's mounts."""
    used = {*_ALWAYS, *needed(spec.resources, spec.security)}
    if not spec.security.privileged:
        used.add("devices")
    found = [_group(h, used, parent, spec.id) for h in facts.cgroups if h.version == 1]
    v1 = [group for group in found if group.controllers]
    v2 = [_group(h, {*_USED_V2}, parent, spec.id) for h in facts.cgroups if h.version == 2]
    anyhow = not v1 or _programs_devices(spec, facts)
    return v1 + [group for group in v2 if group.controllers or anyhow]


def _programs_devices(spec: WorkloadSpec, facts: HostFacts) -> bool:
    return programs_devices(facts) and not spec.security.privileged


def _group(hierarchy: CgroupHierarchy, used: set[str], parent: str, workload: str) -> Group:
    base = f"{hierarchy.mountpoint}/{parent}"
    controllers = tuple(c for c in hierarchy.controllers if c in used)
    return Group(hierarchy, base, f"{base}/{workload}", controllers)


def operations(given: CompileInput) -> list[Op]:
    """Make, limit and join the groups."""
    spec = given.spec
    found = groups(spec, given.host, given.cgroup_parent)
    ops: list[Op] = []
    for group in found:
        if group.hierarchy.version == 1:
            ops += _make_v1(group, given)
        else:
            ops += _make_v2(group, given)
    ops += [op("cgroup.join", group.directory) for group in found]
    ops += _later(found, given)
    ops += _watch(found)
    return ops


#: Controllers without which a workload starts sooner, and that an update may need.
_LATER = frozenset(("cpu", "cpuset"))


def _later(found: list[Group], given: CompileInput) -> list[Op]:
    """Groups of v1 that are made once a limit is set while the workload runs."""
    taken = {group.hierarchy.mountpoint for group in found}
    free = [h for h in given.host.cgroups if h.version == 1 and h.mountpoint not in taken]
    late = [h.mountpoint for h in free if _LATER & set(h.controllers)]
    return [
        op("cgroup.later", f"{mountpoint}/{given.cgroup_parent}/{given.spec.id}")
        for mountpoint in late
    ]


#: Written once, when the groups are made; to write the device list again would empty it first.
_ONCE = ("/devices.allow", "/devices.deny", "/cgroup.subtree_control")


def update(given: CompileInput) -> bytes:
    """The limits of a running workload written again, as operations for its shim."""
    writes = [o for o in operations(given) if o.name in ("cgroup.write", "cgroup.try")]
    return encode_ops(o for o in writes if not str(o.args[0]).endswith(_ONCE))


def _watch(found: list[Group]) -> list[Op]:
    """Where an OOM kill shows, and which group names all the processes."""
    ops = []
    for group in found:
        if "memory" in group.controllers:
            file = "memory.oom_control" if group.hierarchy.version == 1 else "memory.events"
            ops.append(op("cgroup.oom", f"{group.directory}/{file}"))
    if found:
        by_use = sorted(found, key=lambda group: "freezer" not in group.controllers)
        ops.append(op("cgroup.kill", by_use[0].directory))
    return ops + _freezer(found) + _statistics(found)


def _freezer(found: list[Group]) -> list[Op]:
    """How to hold all the processes still: v1's own hierarchy, or any group of v2."""
    for group in found:
        if "freezer" in group.controllers:
            return [op("cgroup.freeze", f"{group.directory}/freezer.state", "FROZEN", "THAWED")]
    for group in found:
        if group.hierarchy.version == 2:
            return [op("cgroup.freeze", f"{group.directory}/cgroup.freeze", "1", "0")]
    return []


#: Where the numbers of `vmm stats` are, by version and controller. No group of v1's blkio is made
#: for them: each start would cost 2 to 6 % more, and newer kernels count there only under a limit.
_STATISTICS = {
    (1, "cpuacct"): ("cpuacct", "cpuacct.usage"),
    (1, "memory"): ("memory1", "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat"),
    (2, "memory"): ("memory2", "memory.current", "memory.max", "memory.stat"),
    (1, "pids"): ("pids", "pids.current", "pids.max"),
    (2, "pids"): ("pids", "pids.current", "pids.max"),
    (1, "blkio"): ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    (2, "io"): ("io", "io.stat"),
}


def _statistics(found: list[Group]) -> list[Op]:
    ops = []
    used = [(group, controller) for group in found for controller in group.controllers]
    for group, controller in used:
        if files := _STATISTICS.get((group.hierarchy.version, controller)):
            ops.append(op("stats", files[0], *(f"{group.directory}/{f}" for f in files[1:])))
    if not any(controller == "cpuacct" for _, controller in used):
        # On cgroup2 every group counts its CPU time, whatever controllers it has.
        v2 = [group for group in found if group.hierarchy.version == 2]
        ops += [op("stats", "cpu", f"{group.directory}/cpu.stat") for group in v2[:1]]
    return ops


def _make_v1(group: Group, given: CompileInput) -> list[Op]:
    resources, directory = given.spec.resources, group.directory
    ops = [op("cgroup.make", directory)]
    for controller in group.controllers:
        if controller == "memory":
            ops += _memory_v1(resources, directory)
        elif controller == "cpu":
            ops += _cpu_v1(resources, directory)
        elif controller == "cpuset":
            ops.append(op("cgroup.write", f"{directory}/cpuset.cpus", resources.cpuset_cpus))
        elif controller == "pids" and resources.pids_limit is not None:
            ops.append(op("cgroup.write", f"{directory}/pids.max", pids_max(resources)))
        elif controller == "devices":
            ops += _devices_v1(directory, given)
    return ops


def pids_max(resources: Resources) -> str:
    """pids.max: no positive limit is none at all, as in Docker."""
    limit = resources.pids_limit
    return str(limit) if limit and limit > 0 else "max"


def memory_swap(resources: Resources) -> int | None:
    """Memory plus swap in bytes: as asked, or twice the memory as in Docker; -1 is unlimited."""
    if not resources.memory:
        return None
    return resources.memory_swap or 2 * resources.memory


def _memory_v1(resources: Resources, directory: str) -> list[Op]:
    total = memory_swap(resources)
    if not resources.memory or total is None:
        return []
    verb = "cgroup.write" if resources.memory_swap else "cgroup.try"
    return [
        op("cgroup.write", f"{directory}/memory.limit_in_bytes", resources.memory),
        op(verb, f"{directory}/memory.memsw.limit_in_bytes", total),
    ]


def cpu_quota(nano_cpus: int) -> int:
    """Microseconds of CPU time per CPU_PERIOD."""
    return max(CPU_QUOTA_MIN, nano_cpus * CPU_PERIOD // 1_000_000_000)


def _cpu_v1(resources: Resources, directory: str) -> list[Op]:
    ops = []
    if resources.cpu_shares:
        ops.append(op("cgroup.write", f"{directory}/cpu.shares", resources.cpu_shares))
    if resources.nano_cpus:
        quota = cpu_quota(resources.nano_cpus)
        ops.append(op("cgroup.write", f"{directory}/cpu.cfs_period_us", CPU_PERIOD))
        ops.append(op("cgroup.write", f"{directory}/cpu.cfs_quota_us", quota))
    return ops


def _devices_v1(directory: str, given: CompileInput) -> list[Op]:
    allow = f"{directory}/devices.allow"
    denied = op("cgroup.write", f"{directory}/devices.deny", "a")
    return [denied, *(op("cgroup.write", allow, str(r)) for r in rules(given.devices))]


def _make_v2(group: Group, given: CompileInput) -> list[Op]:
    resources, directory = given.spec.resources, group.directory
    ops = [op("cgroup.make", group.parent)]
    for above in (group.hierarchy.mountpoint, group.parent):
        # One by one: a controller that cannot be passed on fails by the limit that needs it.
        control = f"{above}/cgroup.subtree_control"
        ops += [op("cgroup.try", control, f"+{name}") for name in group.controllers]
    ops.append(op("cgroup.make", directory))
    for controller in group.controllers:
        if controller == "memory":
            ops += _memory_v2(resources, directory)
        elif controller == "cpu":
            ops += _cpu_v2(resources, directory)
        elif controller == "cpuset" and resources.cpuset_cpus:
            ops.append(op("cgroup.write", f"{directory}/cpuset.cpus", resources.cpuset_cpus))
        elif controller == "pids" and resources.pids_limit is not None:
            ops.append(op("cgroup.write", f"{directory}/pids.max", pids_max(resources)))
    if _programs_devices(given.spec, given.host):
        ops.append(_devices_v2(directory, given))
    return ops


def _devices_v2(directory: str, given: CompileInput) -> Op:
    """The list as a program, then in words for those who read the plan."""
    allowed = rules(given.devices)
    return op("cgroup.devices", directory, program(allowed), ", ".join(map(str, allowed)))


def _memory_v2(resources: Resources, directory: str) -> list[Op]:
    total = memory_swap(resources)
    if not resources.memory or total is None:
        return []
    swap = "max" if total < 0 else str(total - resources.memory)
    verb = "cgroup.write" if resources.memory_swap else "cgroup.try"
    return [
        op("cgroup.write", f"{directory}/memory.max", resources.memory),
        op(verb, f"{directory}/memory.swap.max", swap),
    ]


def cpu_weight(shares: int) -> int:
    """cpu.weight (1 to 10000) of v1 shares (2 to 262144): a curve through both ends that
    takes the default of one, 1024, to the default of the other, 100."""
    log = math.log2(min(max(shares, 2), 262_144))
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def _cpu_v2(resources: Resources, directory: str) -> list[Op]:
    ops = []
    if resources.cpu_shares:
        weight = cpu_weight(resources.cpu_shares)
        ops.append(op("cgroup.write", f"{directory}/cpu.weight", weight))
    if resources.nano_cpus:
        quota = cpu_quota(resources.nano_cpus)
        ops.append(op("cgroup.write", f"{directory}/cpu.max", f"{quota} {CPU_PERIOD}"))
    return ops


_FLAGS = "nosuid,nodev,noexec"


def mounts(given: CompileInput) -> list[Op]:
    """/sys/fs/cgroup inside: only hierarchies where the workload has a group of its own."""
    found = groups(given.spec, given.host, given.cgroup_parent)
    writable = given.spec.security.privileged
    if not found:
        return []
    if all(group.hierarchy.version == 2 for group in found):
        return [_mount_v2(writable)]
    ops = [op("mount.fs", "tmpfs", "tmpfs", "/sys/fs/cgroup", _FLAGS, "mode=755")]
    for group in found:
        if group.hierarchy.version == 1:
            ops += _mount_v1(group.hierarchy.controllers, writable)
    if not writable:
        ops.append(op("mount.readonly", "/sys/fs/cgroup"))
    return ops


def _mount_v2(writable: bool) -> Op:
    if writable:
        return op("mount.fs", "cgroup2", "cgroup2", "/sys/fs/cgroup", _FLAGS, "")
    return op("mount.cgroup", 2, "", "cgroup2")


def _mount_v1(controllers: tuple[str, ...], writable: bool) -> list[Op]:
    """One hierarchy; one with several controllers is found by the name of each."""
    name = ",".join(controllers)
    if writable:
        mount = op("mount.fs", "cgroup", "cgroup", f"/sys/fs/cgroup/{name}", _FLAGS, name)
    else:
        mount = op("mount.cgroup", 1, name, name)
    links = controllers if len(controllers) > 1 else ()
    return [mount, *(op("symlink", name, f"/sys/fs/cgroup/{link}") for link in links)]
