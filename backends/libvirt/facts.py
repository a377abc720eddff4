"""The host's facts for guests, and what was asked of libvirt kept for as long as it holds.

A daemon's first answer takes seconds (it tries every emulator), so it is kept for the boot, and as
long as emulator and daemon are the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable

import msgspec

from vmm.backends.libvirt.hypervisor import HELPERS
from vmm.backends.libvirt.variant import Variant
from vmm.model.backend import BackendOptions, CgroupHierarchy, HostFacts, Hypervisor

_DAEMON = "/usr/sbin/libvirtd"
#: Where virtiofsd is registered, and QEMU's user is set.
_SOURCES = (*HELPERS, "/etc/libvirt/qemu.conf")
_BOOT = "/proc/sys/kernel/random/boot_id"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An answer and what it depends on."""

    boot: str
    stamps: dict[str, str]
    hypervisor: Hypervisor


def gather(hypervisor: Hypervisor) -> HostFacts:
    """The facts of this host with a hypervisor."""
    from vmm.backends.libvirt import guest
    from vmm.model import platform

    control = (sys.executable, "-I", os.path.join(os.path.dirname(__file__), "control.py"))
    return HostFacts(
        os="linux",
        architecture=platform.architecture(os.uname().machine),
        kernel=platform.OLDEST_GUEST,
        cpus=os.cpu_count() or 1,
        cap_bounding=guest.CAPABILITIES,
        cgroups=() if hypervisor.session else _processor_groups(),
        cpuset_cpus=_own_cpus(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        hypervisor=msgspec.structs.replace(hypervisor, control=control),
    )


def _processor_groups() -> tuple[CgroupHierarchy, ...]:
    """The hierarchies with which libvirt can divide the CPUs' time."""
    from vmm.backends.linux.mountinfo import hierarchies, parse_mountinfo

    mountinfo = _text("/proc/self/mountinfo")
    mounts = [mount for mount in parse_mountinfo(mountinfo) if mount.type == "cgroup2"]
    unified = {m.mountpoint: _text(f"{m.mountpoint}/cgroup.controllers") for m in mounts}
    found = hierarchies(mountinfo, _text("/proc/self/cgroup"), unified)
    return tuple(hierarchy for hierarchy in found if "cpu" in hierarchy.controllers)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _own_cpus() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))


def cached(options: BackendOptions, variant: Variant, ask: Callable[[], Hypervisor]) -> Hypervisor:
    """The kept answer while it holds, else a new one, kept."""
    path = _path(options, variant)
    kept = _read(path) if path else None
    if kept and _holds(kept):
        return kept.hypervisor
    found = ask()
    if path:
        files = (found.emulator, _DAEMON, found.virtiofsd, *_SOURCES)
        stamps = {name: stamp(name) for name in files if name}
        _write(path, Kept(boot=_boot_id(), stamps=stamps, hypervisor=found))
    return found


def _holds(kept: Kept) -> bool:
    """Whether nothing of what it depends on was changed, added or removed."""
    complete = kept.boot == _boot_id() and kept.stamps.keys() >= set(_SOURCES)
    return complete and all(stamp(path) == was for path, was in kept.stamps.items())


def stamp(path: str) -> str:
    """Changes when the file does; "" when it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _path(options: BackendOptions, variant: Variant) -> str:
    if not options.cache:
        return ""
    key = hashlib.sha256(options.libvirt_uri.encode()).hexdigest()[:8]
    return f"{options.cache}/hypervisor-{variant.name}-{key}.json"


def _boot_id() -> str:
    try:
        with open(_BOOT, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _read(path: str) -> Kept | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError), open(path, "rb") as file:
        return msgspec.json.decode(file.read(1 << 16), type=Kept)
    return None


def _write(path: str, kept: Kept) -> None:
    from vmm.ports.files import atomic_write

    os.makedirs(os.path.dirname(path), mode=0o710, exist_ok=True)
    with contextlib.suppress(OSError):  # it is only asked again
        atomic_write(path, msgspec.json.encode(kept))
