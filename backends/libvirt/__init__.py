"""Virtual machines of images, through libvirt: one domain builder, small files for what differs."""

from vmm.backends.libvirt.kvm import KvmBackend
from vmm.backends.libvirt.qemu import QemuBackend

__all__ = ["KvmBackend", "QemuBackend"]
