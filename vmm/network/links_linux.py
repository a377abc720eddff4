"""The bridge interface: cheap questions by ioctl(2), changes through pyroute2.

Whatever changes a link loads pyroute2, and only then. A workload's own link pair is
made by the native launcher. All of this acts on the caller's network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.model.errors import Conflict, HostError
from vmm.network.subnets import Subnet, mac_for, parse

if TYPE_CHECKING:
    from pyroute2 import IPRoute

# netdevice(7), linux/sockios.h
_GET_FLAGS, _GET_ADDRESS, _GET_NETMASK = 0x8913, 0x8915, 0x891B
_FLAG_UP = 0x1
_NAME_SIZE = 15

#: Written below /proc/sys/net before the bridge comes up. Without IPv6 of its own it takes no
#: router advertisements from workloads; strict reverse path filtering stops them from
#: sending to the host as somebody else; loopback addresses are never routed.
_SYSCTLS = {
    "ipv6/conf/{}/disable_ipv6": "1",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/route_localnet": "0",
    "ipv4/conf/{}/send_redirects": "0",
}


class LinkState(NamedTuple):
    """An interface as its ioctls tell; ``address`` is ``a.b.c.d/n`` or empty."""

    up: bool
    address: str


def link_state(name: str) -> LinkState | None:
    """Whether the interface is up and its first IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        flags = _ask(asker, name, _GET_FLAGS)
        if flags is None:
            return None
        up = bool(struct.unpack_from("=H", flags)[0] & _FLAG_UP)
        address, mask = _ask(asker, name, _GET_ADDRESS), _ask(asker, name, _GET_NETMASK)
    if address is None or mask is None:
        return LinkState(up, "")
    bits = int.from_bytes(mask[4:8], "big").bit_count()
    return LinkState(up, f"{socket.inet_ntoa(address[4:8])}/{bits}")


def _ask(asker: socket.socket, name: str, request: int) -> bytes | None:
    """The union part of struct ifreq; None when there is no such interface or address."""
    given = struct.pack("16s24x", name.encode()[:_NAME_SIZE])
    try:
        return fcntl.ioctl(asker.fileno(), request, given)[16:]
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
            return None
        raise


def ensure_bridge(name: str, address: str, mtu: int) -> None:
    """Make the bridge, or complete one that was left half made: ``address`` (``a.b.c.d/n``), up.

    The hardware address is fixed, or it would follow whichever port is attached.
    """
    with _netlink(f"bridge {name}") as netlink:
        index = _index(netlink, name)
        if index is None:
            mac = mac_for(address.partition("/")[0])
            netlink.link("add", ifname=name, kind="bridge", address=mac)
            index = _index(netlink, name)
        _check_kind(netlink, index, name)
        _write_sysctls(name)
        _set_address(netlink, index, address)
        netlink.link("set", index=index, mtu=mtu, state="up")


def remove_bridge(name: str) -> bool:
    """Delete the bridge unless something is attached to it; whether it is gone."""
    with _netlink(f"bridge {name}") as netlink:
        index = _index(netlink, name)
        if index is None:
            return True
        _check_kind(netlink, index, name)
        if any(link.get_attr("IFLA_MASTER") == index for link in netlink.get_links()):
            return False
        netlink.link("del", index=index)
        return True


def host_subnets(besides: str) -> list[Subnet]:
    """Destinations of all IPv4 routes of the host, default routes and interface ``besides`` not.

    All tables are read, so that the subnets of VPNs with policy routing count too.
    """
    with _netlink("the routes of the host") as netlink:
        own = _index(netlink, besides)
        found = set()
        for route in netlink.get_routes(family=socket.AF_INET):
            destination, bits = route.get_attr("RTA_DST"), route["dst_len"]
            if destination and bits and (own is None or route.get_attr("RTA_OIF") != own):
                found.add(parse(f"{destination}/{bits}"))
    return sorted(found)


def forwarding() -> bool:
    """Whether the host forwards IPv4 packets (ip_forward, Linux's ip-sysctl documentation)."""
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


def enable_forwarding() -> None:
    _write_sysctl("ipv4/ip_forward", "1")


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[IPRoute]:
    """A route netlink socket, its errors as HostError that name ``what``."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise HostError(
            f"{what}: {os.strerror(error.code)}", "root (CAP_NET_ADMIN) is needed to change links"
        ) from error


def _index(netlink: IPRoute, name: str) -> int | None:
    found = netlink.link_lookup(ifname=name)
    return found[0] if found else None


def _check_kind(netlink: IPRoute, index: int | None, name: str) -> None:
    link: Any = netlink.get_links(index)[0]
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else "physical"
    if kind != "bridge":
        raise Conflict(
            f"interface {name} exists and is no bridge ({kind})",
            f"rename it: ip link set {name} down; ip link set {name} name OTHER",
        )


def _set_address(netlink: IPRoute, index: int | None, address: str) -> None:
    """Leave ``address`` as the only IPv4 address."""
    present = False
    for one in netlink.get_addr(index=index, family=socket.AF_INET):
        if f"{one.get_attr('IFA_LOCAL')}/{one['prefixlen']}" == address:
            present = True
        else:
            netlink.addr(
                "del", index=index, address=one.get_attr("IFA_LOCAL"), prefixlen=one["prefixlen"]
            )
    if not present:
        host, _, bits = address.partition("/")
        netlink.addr("add", index=index, address=host, prefixlen=int(bits))


def _write_sysctls(name: str) -> None:
    for key, value in _SYSCTLS.items():
        if not key.startswith("ipv6") or os.path.exists("/proc/sys/net/ipv6"):
            _write_sysctl(key.format(name), value)


def _write_sysctl(key: str, value: str) -> None:
    try:
        Path("/proc/sys/net", key).write_text(value)
    except OSError as error:
        raise HostError(
            f"/proc/sys/net/{key} cannot be set to {value}: {error.strerror}",
            "it needs root and a writable /proc/sys",
        ) from error
