"""Guests by emulation (QEMU's TCG): slow, and at home on any host."""

from __future__ import annotations

from vmm.backends.libvirt.backend import LibvirtBackend
from vmm.backends.libvirt.variant import Variant
from vmm.backends.libvirt.xml import element

#: Emulated code leaks nothing through speculation, and its clock is the emulator's: what a kernel
#: does about either only costs time.
_QUICK = (
    "mitigations=off nokaslr no_timer_check tsc=reliable rcupdate.rcu_expedited=1 "
    "random.trust_cpu=on cryptomgr.notests"
)

QEMU = Variant(
    name="qemu",
    domain_type="qemu",
    accelerator="tcg",
    cpu=element("cpu", {"mode": "maximum", "check": "none"}),
    clock=element("clock", {"offset": "utc"}, element("timer", {"name": "hpet", "present": "no"})),
    parameters=_QUICK,
    boot_ms=180_000,
    answer_ms=60_000,
    translations=128,
)


class QemuBackend(LibvirtBackend):
    """Backend ``qemu``: emulates."""

    name = "qemu"
    variant = QEMU
