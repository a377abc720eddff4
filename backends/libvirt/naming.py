"""Names at libvirt and paths in the run directory that are derived from a workload's id."""

from __future__ import annotations

from vmm.model.ids import short

#: The virtio-serial port of the control channel (native/PROTOCOL.md).
CHANNEL = "org.vmm.control.0"
#: Tag of the shared directory.
SHARE = "share"


def domain(mark: str, workload: str) -> str:
    """``vmm-<id12>``, or with the mark of another instance."""
    return f"{mark}-{short(workload)}"


def uuid(workload: str) -> str:
    """The first 128 bits of the id."""
    return "-".join(workload[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))


def channel(run: str) -> str:
    """The socket at which the shim awaits the guest."""
    return f"{run}/channel.sock"


def share(run: str) -> str:
    """The directory that the guest sees, of bind mounts."""
    return f"{run}/share"
