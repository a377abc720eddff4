"""Ports are bound by real sockets before anything else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.unit.network.netlab import Namespace
from vmm.model.errors import Conflict, HostError, UsageError, VmmError
from vmm.model.spec import Port
from vmm.network.ports import PublishedPort, bind_ports, close_ports, relay_argv

DEFAULTS = ("127.0.0.1", "::1")
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def bind(*ports: Port, defaults: tuple[str, ...] = DEFAULTS) -> list[Port]:
    """What was bound, as plain values."""
    return [one.port for one in bind_ports(ports, defaults)]


def listener(address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A server of somebody else's, as servers are: with SO_REUSEADDR."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def test_default_addresses_are_both_bound(namespace: Namespace) -> None:
    ports = namespace.call(bind, Port(container_port=80, host_port=8080))
    assert [(p.host_ip, p.host_port, p.container_port) for p in ports] == [
        ("127.0.0.1", 8080, 80),
        ("::1", 8080, 80),
    ]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_0_is_one_free_port_on_every_address(namespace: Namespace, protocol: str) -> None:
    def many() -> list[tuple[Port, Port]]:
        wanted = Port(container_port=80, protocol=protocol)  # type: ignore[arg-type]
        return [tuple(bind(wanted)) for _ in range(50)]  # type: ignore[misc]

    pairs = namespace.call(many)
    assert all(a.host_port == b.host_port > 0 for a, b in pairs)
    assert len({a.host_port for a, _ in pairs}) == 50


def test_port_0_skips_what_is_taken_on_one_address(namespace: Namespace) -> None:
    """Only two ephemeral ports, one of them taken on ::1 alone."""

    def crowded() -> list[Port]:
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40001")
        with listener("::1", 40000):
            return bind(Port(container_port=80))

    assert {p.host_port for p in namespace.call(crowded)} == {40001}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("address", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_taken_port_in_dockers_words(
    namespace: Namespace, address: str, shown: str, protocol: str
) -> None:
    def taken() -> None:
        with listener(address, 8080, KINDS[protocol]):
            bind(Port(container_port=80, host_port=8080, protocol=protocol))  # type: ignore[arg-type]

    with pytest.raises(Conflict) as raised:
        namespace.call(taken)
    assert raised.value.message == f"Bind for {shown}:8080 failed: port is already allocated"
    assert "8080" in raised.value.hint


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "10.1.1.1"])
def test_bound_port_is_kept_from_everybody(
    namespace: Namespace, address: str, protocol: str
) -> None:
    def attempt() -> str:
        wanted = Port(container_port=80, host_ip=address, host_port=81, protocol=protocol)  # type: ignore[arg-type]
        held = bind_ports([wanted], ())
        try:
            listener(address, 81, KINDS[protocol])
        except OSError as error:
            return os.strerror(error.errno or 0)
        finally:
            close_ports(held)
        return "bound"

    namespace.ip("address", "add", "10.1.1.1/32", "dev", "lo")
    assert namespace.call(attempt) == "Address already in use"


def test_port_can_be_bound_again_after_connections(namespace: Namespace) -> None:
    """Connections in TIME_WAIT do not block the next start."""

    def again() -> int:
        (held,) = bind_ports([Port(container_port=80, host_ip="127.0.0.1", host_port=82)], ())
        with socket.socket(fileno=held.fd) as server:
            client = socket.create_connection(("127.0.0.1", 82))
            accepted, _ = server.accept()
            accepted.close()
            client.close()
        return len(bind(Port(container_port=80, host_ip="127.0.0.1", host_port=82)))

    assert namespace.call(again) == 1


def test_failure_gives_back_what_was_bound(namespace: Namespace) -> None:
    def half() -> tuple[int, int]:
        before = len(os.listdir("/proc/self/fd"))
        with listener("::1", 83):
            with pytest.raises(Conflict):
                bind(Port(container_port=80, host_port=84), Port(container_port=80, host_port=83))
            return before, len(os.listdir("/proc/self/fd")) - 1

    before, after = namespace.call(half)
    assert before == after


def test_host_without_ipv6(namespace: Namespace) -> None:
    namespace.sh("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=1")
    ports = namespace.call(bind, Port(container_port=80, host_port=85))
    assert [p.host_ip for p in ports] == ["127.0.0.1"]
    with pytest.raises(HostError, match=r"\[::1\]:85 failed: the host has no such address"):
        namespace.call(bind, Port(container_port=80, host_ip="::1", host_port=85))


def test_both_families_of_any_address(namespace: Namespace) -> None:
    ports = namespace.call(bind, Port(container_port=80, host_port=86), defaults=("0.0.0.0", "::"))
    assert [p.host_ip for p in ports] == ["0.0.0.0", "::"]


@pytest.mark.parametrize(
    "port",
    [
        Port(container_port=0, host_port=1),
        Port(container_port=65536),
        Port(container_port=80, host_port=65536),
        Port(container_port=80, host_port=-1),
        Port(container_port=80, protocol="sctp"),  # type: ignore[arg-type]
        Port(container_port=80, host_ip="localhost"),
        Port(container_port=80, host_ip="127.0.0.1\0x"),
        Port(container_port=80, host_ip="1.2.3.4; rm"),
    ],
)
def test_wrong_values_are_refused(port: Port) -> None:
    with pytest.raises(UsageError) as raised:
        bind(port)
    assert raised.value.hint


def test_address_of_another_host() -> None:
    with pytest.raises(VmmError, match="the host has no such address"):
        bind(Port(container_port=80, host_ip="198.51.100.7", host_port=8087))


def test_sockets_do_not_leak_into_programs(namespace: Namespace) -> None:
    def inheritable() -> list[bool]:
        return [os.get_inheritable(p.fd) for p in bind_ports([Port(container_port=80)], DEFAULTS)]

    assert namespace.call(inheritable) == [False, False]


def test_relay_command_line() -> None:
    published = [
        PublishedPort(Port(container_port=80, host_ip="127.0.0.1", host_port=8080), 7),
        PublishedPort(Port(container_port=53, host_ip="::1", host_port=53, protocol="udp"), 9),
    ]
    assert relay_argv("/lib/exec", published, "172.17.0.2") == (
        "/lib/exec/vmm-relay",
        "7,tcp,172.17.0.2,80,serve",
        "9,udp,172.17.0.2,53,serve",
    )
