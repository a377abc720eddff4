"""A guest's link where libvirt may make none: a tap device that outlasts this process and that one
user's QEMU may open (Documentation/networking/tuntap.rst; netdevice(7)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from vmm.model.backend import Endpoint
from vmm.model.errors import HostError

DEVICE = "/dev/net/tun"
# linux/if_tun.h: of a descriptor of DEVICE
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_TAP, _NO_INFORMATION, _VNET_HEADER = 0x2, 0x1000, 0x4000
# linux/sockios.h: of any socket
_GET_FLAGS, _SET_FLAGS, _SET_MTU, _BRIDGE_ADD = 0x8913, 0x8914, 0x8922, 0x89A2
_UP = 0x1


def make(end: Endpoint, uid: int) -> None:
    """The link, up and in its bridge, for user ``uid``; what an earlier start left is taken."""
    try:
        with _opened(end.link) as device:
            fcntl.ioctl(device, _TUNSETOWNER, uid)
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
        _join(end)
    except OSError as error:
        remove(end.link)
        raise HostError(
            f"link {end.link} into {end.bridge}: {error.strerror}",
            f"vmm needs CAP_NET_ADMIN and {DEVICE}; or use --network none",
        ) from None


def remove(link: str) -> None:
    """Take it back; nothing if it is not there."""
    with contextlib.suppress(OSError):
        socket.if_nametoindex(link)  # opening one that is not there would make it
        with _opened(link) as device:
            fcntl.ioctl(device, _TUNSETPERSIST, 0)


@contextlib.contextmanager
def _opened(link: str) -> Iterator[int]:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _TAP | _NO_INFORMATION | _VNET_HEADER
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", link.encode(), flags))
        yield device
    finally:
        os.close(device)


def _join(end: Endpoint) -> None:
    name = end.link.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        fcntl.ioctl(asker, _SET_MTU, struct.pack("16si20x", name, end.mtu))
        index = socket.if_nametoindex(end.link)
        bridge = struct.pack("16si20x", end.bridge.encode(), index)
        try:
            fcntl.ioctl(asker, _BRIDGE_ADD, bridge)
        except OSError as error:
            if error.errno != errno.EBUSY:  # it is in a bridge: ours, by its name
                raise
        (flags,) = struct.unpack_from(
            "H", fcntl.ioctl(asker, _GET_FLAGS, name.ljust(40, b"\0")), 16
        )
        fcntl.ioctl(asker, _SET_FLAGS, struct.pack("16sH22x", name, flags | _UP))
