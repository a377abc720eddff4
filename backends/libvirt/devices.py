"""A guest's devices, one function each (formatdomain.html, "Devices").

Every PCI device sits on the root bus: without root ports in between there is less to enumerate,
which is a good part of an emulated boot.
"""

from __future__ import annotations

from vmm.backends.libvirt import naming
from vmm.backends.libvirt.xml import Element, element
from vmm.model.backend import CompileInput, Endpoint

#: Slots on the root bus; 0 and 31 are the chip set's.
SLOTS = {"root": 2, "disk": 3, "serial": 4, "net": 5, "share": 6, "balloon": 7, "rng": 8}


def _slot(name: str) -> Element:
    place = {"type": "pci", "domain": "0x0000", "bus": "0x00", "slot": f"0x{SLOTS[name]:02x}"}
    return element("address", {**place, "function": "0x0"})


def controllers() -> list[Element]:
    """The root bus, no USB, and the bus of the control channel."""
    return [
        element("controller", {"type": "pci", "index": 0, "model": "pcie-root"}),
        element("controller", {"type": "usb", "index": 0, "model": "none"}),
        element("controller", {"type": "virtio-serial", "index": 0, "ports": 2}, _slot("serial")),
    ]


def root(given: CompileInput) -> Element:
    """The image's disk: read-only, shared by its guests through the host's page cache."""
    driver = {"name": "qemu", "type": "raw", "cache": "writeback"}
    source = element("source", {"file": given.root.path})
    return _disk("root", "vda", driver, source, element("readonly"))


def disk(given: CompileInput) -> Element:
    """The guest's own disk. What it discards is given back to the host; flushes are obeyed unless
    the disk goes away with the workload."""
    cache = "unsafe" if given.root.volatile else "writeback"
    driver = {"name": "qemu", "type": "raw", "cache": cache, "discard": "unmap"}
    return _disk("disk", "vdb", driver, element("source", {"file": given.root.disk}))


def _disk(
    name: str, target: str, driver: dict[str, str], source: Element, *more: Element
) -> Element:
    return element(
        "disk",
        {"type": "file", "device": "disk"},
        element("driver", driver),
        source,
        element("target", {"dev": target, "bus": "virtio"}),
        *more,
        element("serial", text=name),
        _slot(name),
    )


def network(end: Endpoint, made: bool) -> Element:
    """The link into the bridge, ``made`` for QEMU beforehand (tap.py). No option ROM: nothing
    boots from it."""
    return element(
        "interface",
        {"type": "ethernet" if made else "bridge"},
        element("mac", {"address": end.mac}),
        None if made else element("source", {"bridge": end.bridge}),
        element("target", {"dev": end.link, **({"managed": "no"} if made else {})}),
        element("model", {"type": "virtio"}),
        element("rom", {"enabled": "no"}),
        element("mtu", {"size": end.mtu}),
        _slot("net"),
    )


def share(given: CompileInput) -> Element:
    """One virtiofs for all bind mounts and volumes. Locks stay the guest's own: the daemon
    could only wait for them while everything else waits too."""
    hypervisor = given.host.hypervisor
    binary = {"path": hypervisor.virtiofsd if hypervisor else "", "xattr": "on"}
    locks = element("lock", {"posix": "off", "flock": "off"})
    return element(
        "filesystem",
        {"type": "mount"},
        element("driver", {"type": "virtiofs"}),
        element("binary", binary, locks),
        element("source", {"dir": naming.share(given.paths.run)}),
        element("target", {"dir": naming.SHARE}),
        _slot("share"),
    )


def channel(given: CompileInput) -> Element:
    """QEMU connects to the shim's socket, and again when a shim was lost."""
    return element(
        "channel",
        {"type": "unix"},
        element(
            "source",
            {"mode": "connect", "path": naming.channel(given.paths.run)},
            element("reconnect", {"enabled": "yes", "timeout": 1}),
        ),
        element("target", {"type": "virtio", "name": naming.CHANNEL}),
        element("address", {"type": "virtio-serial", "controller": 0, "bus": 0, "port": 1}),
    )


def console() -> list[Element]:
    """The kernel's messages, for ``virsh console``."""
    target = element("target", {"type": "isa-serial", "port": 0})
    return [
        element("serial", {"type": "pty"}, target),
        element("console", {"type": "pty"}, element("target", {"type": "serial", "port": 0})),
    ]


def balloon() -> Element:
    """Takes memory back (``vmm update``); pages that the guest freed return to the host."""
    return element("memballoon", {"model": "virtio", "freePageReporting": "on"}, _slot("balloon"))


def entropy() -> Element:
    backend = element("backend", {"model": "random"}, text="/dev/urandom")
    return element("rng", {"model": "virtio"}, backend, _slot("rng"))
