"""Guests by the processor's own virtualisation (KVM)."""

from __future__ import annotations

from vmm.backends.libvirt.backend import LibvirtBackend
from vmm.backends.libvirt.variant import Variant
from vmm.backends.libvirt.xml import element

#: kvm-clock is the guest's; the timers it would probe for are slow to emulate.
KVM = Variant(
    name="kvm",
    domain_type="kvm",
    accelerator="kvm",
    cpu=element("cpu", {"mode": "host-passthrough", "check": "none"}),
    clock=element(
        "clock",
        {"offset": "utc"},
        element("timer", {"name": "pit", "tickpolicy": "delay"}),
        element("timer", {"name": "rtc", "tickpolicy": "catchup"}),
        element("timer", {"name": "hpet", "present": "no"}),
    ),
    parameters="rcupdate.rcu_expedited=1 random.trust_cpu=on cryptomgr.notests",
    boot_ms=60_000,
    answer_ms=30_000,
)


class KvmBackend(LibvirtBackend):
    """Backend ``kvm``: never emulates."""

    name = "kvm"
    variant = KVM
