"""Published ports: real sockets, bound before anything else is made.

A port in use so is the kernel's own refusal, and a published port is reserved against every
other process for the workload's life. Traffic to loopback and to IPv6 addresses comes to these
sockets, and the relay serves it. Traffic to other addresses is redirected before it
gets here (vmm/network/nft.py); the relay serves what is not: a workload that calls itself, and
everybody while an administrator has flushed the ruleset.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from vmm.model.errors import Conflict, HostError, UsageError
from vmm.model.spec import Port

#: Free ports tried until one is free on every address.
_ATTEMPTS = 64
_BACKLOG = 128
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class PublishedPort(NamedTuple):
    """A bound socket; ``fd`` is close-on-exec and owned by the caller."""

    port: Port
    fd: int


def bind_ports(requests: Sequence[Port], publish_addresses: Sequence[str]) -> list[PublishedPort]:
    """Bind every requested port on each of its addresses, or none.

    A request without an address means ``publish_addresses``; those of an address family
    that the host does not have are left out. A port 0 becomes one free port, the same on
    every address. Conflict when a port is taken.
    """
    bound: list[PublishedPort] = []
    try:
        for request in requests:
            bound += _bind_request(request, publish_addresses)
    except BaseException:
        close_ports(bound)
        raise
    return bound


def close_ports(published: Sequence[PublishedPort]) -> None:
    """Give the ports up."""
    for one in published:
        os.close(one.fd)


def relay_argv(libexec: str, published: Sequence[PublishedPort], target: str) -> tuple[str, ...]:
    """The relay's command line: ``FD,PROTOCOL,TARGET,PORT,serve`` for each socket."""
    return (
        os.path.join(libexec, "vmm-relay"),
        *(
            f"{one.fd},{one.port.protocol},{target},{one.port.container_port},serve"
            for one in published
        ),
    )


def _bind_request(request: Port, defaults: Sequence[str]) -> list[PublishedPort]:
    _check(request)
    addresses = [_literal(one) for one in ((request.host_ip,) if request.host_ip else defaults)]
    if request.host_port:
        return _bind_all(request, addresses, request.host_port)
    for number in _free_ports(request, addresses):
        try:
            return _bind_all(request, addresses, number)
        except Conflict:
            continue
    raise Conflict(
        f"no port is free on all of {', '.join(addresses)} for container port "
        f"{request.container_port}/{request.protocol}",
        "name a host port: -p HOST:CONTAINER",
    )


def _check(request: Port) -> None:
    if request.protocol not in ("tcp", "udp"):
        raise UsageError(
            f"port {request.container_port}/{request.protocol:.20}: no such protocol",
            "publish tcp or udp",
        )
    for number, least in ((request.container_port, 1), (request.host_port, 0)):
        if not least <= number <= 65535:
            raise UsageError(f"port {number} is out of range", f"use {least} to 65535")


def _literal(address: str) -> str:
    """An address in its usual form; the kernel compares numbers, we compare texts."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address.strip("[]")))
        except (OSError, ValueError):
            continue
    raise UsageError(
        f"invalid address to publish on: {address!r:.60}",
        "give a literal IPv4 or IPv6 address of this host, or 0.0.0.0 for all",
    )


def _bind_all(request: Port, addresses: list[str], number: int) -> list[PublishedPort]:
    bound: list[PublishedPort] = []
    try:
        for address in addresses:
            port = msgspec.structs.replace(request, host_ip=address, host_port=number)
            try:
                bound.append(PublishedPort(port, _open(port)))
            except OSError as error:
                if request.host_ip or ":" not in address or error.errno not in _NO_SUCH_FAMILY:
                    raise _explain(port, error) from None
    except BaseException:
        close_ports(bound)
        raise
    return bound


def _free_ports(request: Port, addresses: list[str]) -> Iterator[int]:
    """Ports the kernel finds free on the first address, to be tried on all.

    Found by a socket without SO_REUSEADDR, which could be given one that is merely not
    listened on.
    """
    kind = socket.SOCK_STREAM if request.protocol == "tcp" else socket.SOCK_DGRAM
    for _ in range(_ATTEMPTS if addresses else 0):
        with socket.socket(_family(addresses[0]), kind) as probe:
            try:
                probe.bind((addresses[0], 0))
            except OSError as error:
                port = msgspec.structs.replace(request, host_ip=addresses[0])
                raise _explain(port, error) from None
            number = int(probe.getsockname()[1])
        yield number


def _open(port: Port) -> int:
    """A socket that has the port for itself."""
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(_family(port.host_ip), kind) as opened:
        if opened.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port.protocol == "tcp":
            # Not for UDP, where it would let two sockets share the port.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((port.host_ip, port.host_port))
        if port.protocol == "tcp":
            # At once: until a socket listens, SO_REUSEADDR lets others have its port too.
            opened.listen(_BACKLOG)
        return opened.detach()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _explain(port: Port, error: OSError) -> Conflict | HostError:
    shown = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    place = f"Bind for {shown}:{port.host_port} failed"
    if error.errno == errno.EADDRINUSE:
        letter = "t" if port.protocol == "tcp" else "u"
        return Conflict(
            f"{place}: port is already allocated",
            f"see who has it: ss -{letter}lnp 'sport = :{port.host_port}'; or publish on another",
        )
    if error.errno in _NO_SUCH_FAMILY:
        return HostError(
            f"{place}: the host has no such address", "ip address lists the host's addresses"
        )
    if error.errno == errno.EACCES:
        return HostError(f"{place}: permission denied", "ports below 1024 need root")
    return HostError(f"{place}: {error.strerror}")
