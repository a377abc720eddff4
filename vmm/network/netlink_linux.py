"""The two netlink questions asked on a hot path, without a library (netlink(7)).

Loading pyroute2 costs more than a whole container start, and so does running
nft(8); both questions here are one message and answered in microseconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

# linux/netlink.h
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_NETFILTER = 12
# linux/rtnetlink.h, linux/if_link.h
_NEWLINK = 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 18, 1
# linux/netfilter/nfnetlink.h, nf_tables.h
_NFTABLES = 10 << 8
_NEWRULE, _GETRULE = _NFTABLES | 6, _NFTABLES | 7
_NFPROTO_INET = 1
_RULE_TABLE = 1

_HEADER = struct.Struct("=IHHII")
_TIMEOUT_S = 5.0


def count_rules(table: str) -> int:
    """How many rules the table ``inet <table>`` has in this network namespace; 0 if there is none.

    Raises OSError when the kernel has no nftables or the caller lacks CAP_NET_ADMIN.
    """
    body = struct.pack("=BBH", _NFPROTO_INET, 0, 0) + _attribute(_RULE_TABLE, _text(table))
    answers = _exchange(_NETFILTER, _message(_GETRULE, _REQUEST | _DUMP, body))
    return sum(1 for kind, _ in answers if kind == _NEWRULE)


def link_kind_error(kind: str) -> str:
    """ "" when the kernel can make links of ``kind`` (bridge, veth), else why not.

    Nothing is made: the request carries a multicast hardware address, which the kernel
    refuses with EADDRNOTAVAIL only after it has found the kind (``rtnl_link_ops.validate``).
    """
    info = _attribute(_IFLA_INFO_KIND, kind.encode())
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    body += _attribute(_IFLA_IFNAME, _text("vmm-probe"))
    body += _attribute(_IFLA_ADDRESS, b"\x01\0\0\0\0\0") + _attribute(_IFLA_LINKINFO, info)
    try:
        for _ in _exchange(0, _message(_NEWLINK, _REQUEST | _ACK | _CREATE | _EXCL, body)):
            pass
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return ""
        if error.errno == errno.EOPNOTSUPP:
            return f"the kernel has no {kind} links"
        return f"{kind} links: {os.strerror(error.errno or 0)}"
    return f"{kind} links: the kernel gave an unexpected answer"


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def _exchange(protocol: int, message: bytes) -> Iterator[tuple[int, bytes]]:
    """Send ``message``; yield (type, payload) of each answer up to its end or error."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.sendto(message, (0, 0))
        while True:
            for kind, payload in _split(netlink.recv(1 << 16)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    _raise(payload)
                    return
                yield kind, payload


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
        length = max(length, _HEADER.size)
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def _raise(payload: bytes) -> None:
    """An NLMSG_ERROR holds a negative errno, 0 for a plain acknowledgement."""
    (code,) = struct.unpack_from("=i", payload)
    if code:
        raise OSError(-code, os.strerror(-code))
