"""Sockets, relay and packet filter together: every way to a published port."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.network.netlab import UPLINK, WORLD, Lab, Namespace
from vmm.model.spec import Port
from vmm.network.ports import bind_ports, relay_argv

NATIVE = Path(__file__).parents[3] / "native"
ANY = "0.0.0.0"
A = "a" * 64
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
Publish = Callable[..., None]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the relay was built."""
    out = tmp_path_factory.mktemp("native")
    subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={out}", f"{out}/vmm-relay"], check=True)
    return out


class Site(NamedTuple):
    """A workload that serves TCP and UDP on 8080, and what publishes it."""

    lab: Lab
    inside: Namespace
    gateway: str
    address: str


@pytest.fixture
def site(lab: Lab) -> Site:
    service = lab.service()
    lab.host.call(service.ensure_bridge)
    inside, at = lab.workload(service, A)
    inside.serve(8080)
    inside.serve(8080, socket.SOCK_DGRAM)
    return Site(lab, inside, at.gateway, at.address)


@pytest.fixture
def publish(site: Site, programs: Path) -> Iterator[Publish]:
    """Bind, redirect and relay ports as a start does."""
    children = []

    def start(*ports: Port) -> None:
        waiter, held = os.pipe()  # closed by the child's exec
        child = os.fork()
        if child == 0:
            site.lab.host.enter()
            bound = bind_ports(ports, ("127.0.0.1", "::1"))
            site.lab.service().publish(A, site.address, [one.port for one in bound])
            for one in bound:
                os.set_inheritable(one.fd, True)
            argv = relay_argv(str(programs), bound, site.address)
            os.execv(argv[0], argv)
        children.append(child)
        os.close(held)
        with open(waiter, "rb") as until_exec:
            until_exec.read()

    yield start
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


def reach(namespace: Namespace, address: str, kind: int = socket.SOCK_STREAM) -> str | None:
    """The client's address as the workload sees it, once the port answers (within 3 s)."""
    deadline = time.monotonic() + 3
    while (seen := namespace.ask(address, 80, kind)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_default_is_loopback_alone(site: Site, publish: Publish, protocol: str) -> None:
    kind = KINDS[protocol]
    publish(Port(container_port=8080, host_port=80, protocol=protocol))  # type: ignore[arg-type]
    assert reach(site.lab.host, "127.0.0.1", kind) == site.gateway
    assert reach(site.lab.host, "::1", kind) == site.gateway
    for namespace, address in (
        (site.lab.world, UPLINK),
        (site.lab.host, UPLINK),
        (site.inside, UPLINK),
        (site.inside, site.gateway),
    ):
        assert namespace.ask(address, 80, kind) is None


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_all_addresses(site: Site, publish: Publish, protocol: str) -> None:
    kind = KINDS[protocol]
    publish(Port(container_port=8080, host_port=80, host_ip=ANY, protocol=protocol))  # type: ignore[arg-type]
    assert reach(site.lab.world, UPLINK, kind) == WORLD, "the client's own address is kept"
    assert reach(site.lab.host, "127.0.0.1", kind) == site.gateway
    assert reach(site.lab.host, UPLINK, kind) == UPLINK


@pytest.mark.parametrize(("protocol", "address"), [("tcp", ANY), ("tcp", UPLINK), ("udp", UPLINK)])
def test_workload_that_calls_itself(
    site: Site, publish: Publish, protocol: str, address: str
) -> None:
    publish(Port(container_port=8080, host_port=80, host_ip=address, protocol=protocol))  # type: ignore[arg-type]
    assert reach(site.inside, UPLINK, KINDS[protocol]) == site.gateway


def test_one_address(site: Site, publish: Publish) -> None:
    publish(Port(container_port=8080, host_port=80, host_ip=UPLINK))
    assert reach(site.lab.world, UPLINK) == WORLD
    assert site.lab.host.ask("127.0.0.1", 80) is None


def test_flushed_ruleset_leaves_the_relay(site: Site, publish: Publish) -> None:
    publish(
        Port(container_port=8080, host_port=80),
        Port(container_port=8080, host_port=80, host_ip=UPLINK),
    )
    assert reach(site.lab.world, UPLINK) == WORLD
    site.lab.host.sh("nft", "flush", "ruleset")
    assert reach(site.lab.host, "127.0.0.1") == site.gateway
    assert reach(site.lab.world, UPLINK) == site.gateway
    site.lab.host.call(site.lab.service().ensure_bridge)
    assert reach(site.lab.world, UPLINK) == WORLD
