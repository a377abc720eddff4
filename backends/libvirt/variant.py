"""What differs between the hypervisors that libvirt drives, as data."""

from __future__ import annotations

from typing import NamedTuple

from vmm.backends.libvirt.xml import Element


class Variant(NamedTuple):
    """One hypervisor: what of the domain is its own."""

    #: The backend's name.
    name: str
    #: Attribute ``type`` of ``<domain>`` (formatdomain.html).
    domain_type: str
    #: "kvm" or "tcg".
    accelerator: str
    cpu: Element
    clock: Element
    #: Kernel parameters beside those of every guest.
    parameters: str
    #: Milliseconds until a booting guest must have said hello, and for each answer.
    boot_ms: int
    answer_ms: int
    #: MiB of host memory for translated code, which comes on top of the guest's; 0: there is none.
    translations: int = 0
