"""What any Linux kernel, the host's or a guest's, can honour of a spec; the rest is an error, never
dropped. What is of one backend alone is in its own package."""

from __future__ import annotations

import re

from vmm.backends.linux import capabilities, limits, mounts, tmpfs
from vmm.backends.linux.mountinfo import parse_cpu_list
from vmm.model import signals
from vmm.model.backend import HostFacts
from vmm.model.errors import Unsupported, UsageError
from vmm.model.spec import WorkloadSpec

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


def check(spec: WorkloadSpec, facts: HostFacts, *, own_kernel: bool = False) -> None:
    """Raise Unsupported, or UsageError for a value that no host could honour.

    ``facts`` are those of the kernel that runs it; ``own_kernel``: nothing else runs there.
    """
    _resources(spec, facts)
    _capabilities(spec, facts)
    for ulimit in spec.resources.ulimits:
        limits.check(ulimit, facts)
    for key, value in spec.sysctls.items():
        _sysctl(key, value, spec, own_kernel)
    _mounts(spec)
    signals.number(spec.stop_signal)


def _resources(spec: WorkloadSpec, facts: HostFacts) -> None:
    resources = spec.resources
    memory, total = resources.memory, resources.memory_swap
    if total and not memory:
        raise UsageError("--memory-swap without --memory", "give --memory as well")
    if total and memory and 0 < total < memory:
        raise UsageError(
            f"--memory-swap {total} is smaller than --memory {memory}",
            "it is the sum of memory and swap; -1 is unlimited swap",
        )
    shares = resources.cpu_shares
    if shares and not 2 <= shares <= 262_144:
        raise UsageError(f"--cpu-shares {shares}: must be from 2 to 262144")
    if resources.nano_cpus and not 10_000_000 <= resources.nano_cpus <= facts.cpus * 10**9:
        given = resources.nano_cpus / 10**9
        raise Unsupported(
            f"--cpus {given:g}: this host has {facts.cpus}", f"from 0.01 to {facts.cpus}"
        )


def cpuset(asked: str, available: str) -> None:
    """Raise unless ``asked`` is a list of CPUs among those ``available`` ("" is not known)."""
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


def _capabilities(spec: WorkloadSpec, facts: HostFacts) -> None:
    security = spec.security
    _, added = capabilities.parse(security.cap_add, "--cap-add")
    capabilities.parse(security.cap_drop, "--cap-drop")
    missing = capabilities.names_of(added & ~facts.cap_bounding)
    if missing and not security.privileged:
        raise Unsupported(
            f"--cap-add {missing[0]}: backend {spec.backend}: not in the bounding set of this host",
            "vmm itself runs without that capability and cannot give it",
        )


def _sysctl(key: str, value: str, spec: WorkloadSpec, own_kernel: bool) -> None:
    name = key.replace("/", ".") if "." not in key else key
    if not _SYSCTL.match(key) or "\0" in value or "\n" in value:
        raise UsageError(f"--sysctl {key}={value!r:.40}: not a sysctl", "write net.core.somaxconn")
    if own_kernel or name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        return
    if not name.startswith("net."):
        raise Unsupported(
            f"--sysctl {key}: backend {spec.backend}: it belongs to the whole host, not to a "
            "namespace",
            "only net.*, fs.mqueue.* and kernel.{shm*,msg*,sem} can be set for a workload; "
            "a virtual machine has all of them (--backend vm)",
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
                f"mount target {mount.target}: backend {spec.backend} keeps /proc to itself",
                "mount it elsewhere",
            )
        if target in seen:
            raise UsageError(f"Duplicate mount point: {target}")
        seen.add(target)
        if mount.propagation not in PROPAGATIONS:
            raise UsageError(f"mount {target}: no such propagation {mount.propagation!r}")
        if mount.kind == "tmpfs":
            tmpfs.parse(target, mount.options, mount)
