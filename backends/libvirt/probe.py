"""Whether guests can run here, with the reasons."""

from __future__ import annotations

import os

from vmm.backends.libvirt import check, facts, hypervisor
from vmm.backends.libvirt.access import permits
from vmm.backends.libvirt.port import Libvirt
from vmm.backends.libvirt.variant import Variant
from vmm.model.backend import BackendOptions, Capability, Hypervisor
from vmm.model.errors import UsageError, VmmError

#: Without these there are guests all the same.
_OPTIONAL = _SHARED, _TIME = "shared directories", "parts of CPUs"
#: Overrides what is found out about the accelerator: "kvm" or "tcg".
OVERRIDE = "VMM_ACCEL"
DEVICE = "/dev/kvm"
#: A hypervisor for guests that know of it: /dev/kvm opens, and a stock kernel hangs.
PVM = "/sys/module/kvm_pvm"


def override() -> str:
    """The accelerator that the environment names; UsageError for one that is none."""
    wanted = os.environ.get(OVERRIDE, "")
    if wanted not in ("", "kvm", "tcg"):
        raise UsageError(f"{OVERRIDE}={wanted!r:.40}: no such accelerator", "write kvm or tcg")
    return wanted


def acceleration(wanted: str, device: str = DEVICE, pvm: str = PVM) -> Capability:
    """Whether the processor's own virtualisation runs stock guests here."""
    if wanted:
        reason = f"{OVERRIDE}={wanted} says so"
        return Capability(name="hardware acceleration", available=wanted == "kvm", reason=reason)
    reason = _no_kvm(device, pvm)
    return Capability(name="hardware acceleration", available=not reason, reason=reason)


def _no_kvm(device: str, pvm: str) -> str:
    if not os.path.exists(device):
        return f"no {device}: this processor or host offers no virtualisation, or modprobe kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no permission for {device}: join the group kvm"
    if os.path.exists(pvm):
        return f"{device} is kvm_pvm's, which runs no stock guest ({OVERRIDE}=kvm to try anyway)"
    return ""


def asked(libvirt: Libvirt, options: BackendOptions, variant: Variant) -> Hypervisor:
    """What libvirt says, from the cache if it holds; VmmError for the reason why not."""
    machine = os.uname().machine
    return facts.cached(options, variant, lambda: hypervisor.ask(libvirt, variant, machine))


def probe(libvirt: Libvirt, options: BackendOptions, variant: Variant) -> list[Capability]:
    """The backend itself first, then its parts."""
    parts = [acceleration(override())] if variant.accelerator == "kvm" else []
    connection = _connection(libvirt)
    parts.append(connection)
    if all(part.available for part in parts):
        parts += _domains(libvirt, options, variant)
    missing = [part for part in parts if not part.available and part.name not in _OPTIONAL]
    reason = "; ".join(part.reason for part in missing)
    itself = Capability(
        name=variant.name,
        available=not missing,
        reason=reason if missing else _how(variant),
    )
    return [itself, *parts]


def _how(variant: Variant) -> str:
    if variant.accelerator == "tcg":
        return "emulation (TCG): slow"
    return f"{OVERRIDE}=kvm says so" if override() == "kvm" else "the processor's virtualisation"


def _connection(libvirt: Libvirt) -> Capability:
    try:
        version = libvirt.version()
    except VmmError as error:
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
        return Capability(name="libvirt", available=False, reason=reason)
    shown = f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
    return Capability(name="libvirt", available=True, reason=f"{shown}, {libvirt.uri}")


def _domains(libvirt: Libvirt, options: BackendOptions, variant: Variant) -> list[Capability]:
    try:
        found = asked(libvirt, options, variant)
    except VmmError as error:
        return [Capability(name="emulator", available=False, reason=error.message)]
    reason = f"{found.emulator}, {found.machine}"
    if closed := unreachable(found, DEVICE):
        reason += f"; {closed}"
    return [
        Capability(name="emulator", available=True, reason=reason),
        Capability(name=_SHARED, available=bool(found.virtiofsd), reason=_sharing(found)),
        _processor_time(found),
    ]


def _sharing(found: Hypervisor) -> str:
    if found.virtiofsd:
        return "virtiofs"
    return f"{'a session' if found.session else 'no virtiofsd'}: no volumes and bind mounts"


def _processor_time(found: Hypervisor) -> Capability:
    """``--cpus`` in parts and ``--cpu-shares``."""
    known = facts.gather(found)
    version = max((group.version for group in known.cgroups), default=0)
    reason = f"cgroup v{version}" if version else f"{check.no_groups(known)}: whole CPUs alone"
    return Capability(name=_TIME, available=bool(version), reason=reason)


def unreachable(found: Hypervisor, device: str) -> str:
    """What makes every start slow, "" for nothing: as long as QEMU's user cannot open a device
    that is there, libvirt believes none of its earlier answers and asks the emulator anew."""
    try:
        status = os.stat(device)
    except OSError:
        return ""
    if any(permits(status, found.uid, gid, 6) for gid in _groups(found)):
        return ""
    return (
        f"libvirt asks it anew at each start, for seconds, as QEMU's user may not open {device}: "
        f"chgrp kvm {device} && chmod 660 {device}"
    )


def _groups(found: Hypervisor) -> list[int]:
    import pwd

    try:
        user = pwd.getpwuid(found.uid)
        return [found.gid, *os.getgrouplist(user.pw_name, user.pw_gid)]
    except KeyError:
        return [found.gid]
