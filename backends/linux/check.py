"""Options that this backend or this host cannot honour are errors, never dropped."""

from __future__ import annotations

import re

from vmm.backends.linux import capabilities, cgroups, limits, mounts, tmpfs
from vmm.backends.linux.mountinfo import parse_cpu_list
from vmm.model import signals
from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported, UsageError
from vmm.model.spec import Resources, Security, WorkloadSpec

#: Below this not even a shell starts (Docker's minimum).
MEMORY_MIN = 6 << 20
PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))

#: Sysctls of the IPC namespace (ipc_namespaces(7), mq_overview(7)).
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    ]
)
_SYSCTL = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_-]+)+\Z")


def check(spec: WorkloadSpec, facts: HostFacts) -> None:
    """Raise Unsupported, or UsageError for a value that no host could honour."""
    _platform(spec, facts)
    _resources(spec.resources, facts)
    _controllers(spec, facts)
    _devices(spec, facts)
    _capabilities(spec.security, facts)
    for ulimit in spec.resources.ulimits:
        limits.check(ulimit, facts)
    for key, value in spec.sysctls.items():
        _sysctl(key, value, spec)
    _mounts(spec)
    signals.number(spec.stop_signal)


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


def _resources(resources: Resources, facts: HostFacts) -> None:
    memory, total = resources.memory, resources.memory_swap
    if memory and memory < MEMORY_MIN:
        raise UsageError(f"--memory {memory}: less than the minimum of {MEMORY_MIN} bytes (6 MiB)")
    if total and not memory:
        raise UsageError("--memory-swap without --memory", "give --memory as well")
    if total and memory and 0 < total < memory:
        raise UsageError(
            f"--memory-swap {total} is smaller than --memory {memory}",
            "it is the sum of memory and swap; -1 is unlimited swap",
        )
    if total and not facts.swap_limit:
        raise Unsupported(
            "--memory-swap: backend container: this kernel does not limit swap",
            "boot it with swapaccount=1, or leave the option out",
        )
    shares = resources.cpu_shares
    if shares and not 2 <= shares <= 262_144:
        raise UsageError(f"--cpu-shares {shares}: must be from 2 to 262144")
    if resources.nano_cpus and not 10_000_000 <= resources.nano_cpus <= facts.cpus * 10**9:
        given = resources.nano_cpus / 10**9
        raise Unsupported(
            f"--cpus {given:g}: this host has {facts.cpus}", f"from 0.01 to {facts.cpus}"
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
        _cpuset(spec.resources.cpuset_cpus, facts.cpuset_cpus)


def _cpuset(asked: str, available: str) -> None:
    try:
        wanted = parse_cpu_list(asked)
    except ValueError:
        raise UsageError(
            f"--cpuset-cpus {asked!r:.40}: not a list of CPUs", "write 0-2 or 0,2"
        ) from None
    if available and not wanted <= parse_cpu_list(available):
        raise Unsupported(
            f"--cpuset-cpus {asked}: this host has CPUs {available}", "choose among these"
        )


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


def _capabilities(security: Security, facts: HostFacts) -> None:
    _, added = capabilities.parse(security.cap_add, "--cap-add")
    capabilities.parse(security.cap_drop, "--cap-drop")
    missing = capabilities.names_of(added & ~facts.cap_bounding)
    if missing and not security.privileged:
        raise Unsupported(
            f"--cap-add {missing[0]}: backend container: not in the bounding set of this host",
            "vmm itself runs without that capability and cannot give it",
        )


def _sysctl(key: str, value: str, spec: WorkloadSpec) -> None:
    name = key.replace("/", ".") if "." not in key else key
    if not _SYSCTL.match(key) or "\0" in value or "\n" in value:
        raise UsageError(f"--sysctl {key}={value!r:.40}: not a sysctl", "write net.core.somaxconn")
    if name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        return
    if not name.startswith("net."):
        raise Unsupported(
            f"--sysctl {key}: backend container: it belongs to the whole host, not to a namespace",
            "only net.*, fs.mqueue.* and kernel.{shm*,msg*,sem} can be set for a workload",
        )
    if spec.network.mode == "host":
        raise Unsupported(
            f"--sysctl {key}: not with the host's network",
            "use --network bridge or none",
        )


def _mounts(spec: WorkloadSpec) -> None:
    seen: set[str] = set()
    for mount in spec.mounts:
        target = mounts.normal(mount.target)
        if not mount.target.startswith("/") or target == "/":
            raise UsageError(
                f"mount target {mount.target!r}: must be an absolute path other than /"
            )
        if target == "/proc" or target.startswith("/proc/"):
            raise Unsupported(
                f"mount target {mount.target}: backend container keeps /proc to itself",
                "mount it elsewhere",
            )
        if target in seen:
            raise UsageError(f"Duplicate mount point: {target}")
        seen.add(target)
        if mount.propagation not in PROPAGATIONS:
            raise UsageError(f"mount {target}: no such propagation {mount.propagation!r}")
        if mount.kind == "tmpfs":
            tmpfs.parse(target, mount.options, mount)
