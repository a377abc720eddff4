"""Networks as a user meets them: names, published ports, firewalls, hosts that lack something."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.instance import Instance

CLONE_NEWNET = 0x40000000
UPLINK, WAN, PEER = "198.51.100.1", "203.0.113.1", "203.0.113.2"
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
T = TypeVar("T")


class Space:
    """A network namespace in which sockets are made and used (setns(2) is per thread)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, function: Callable[[], T]) -> T:
        def inside() -> T:
            with open(self.path) as namespace:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inside).result()

    def bound(self, kind: int, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def bind() -> socket.socket:
            made = socket.socket(family, kind)
            if kind == TCP:  # what is left of closed connections is not in the way
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                made.bind((host, port))
            except OSError:
                made.close()
                raise
            return made

        return self.call(bind)

    def serve(self, port: int, kind: int = TCP) -> None:
        """Tell every client its own address as it is seen here."""
        server = self.bound(kind, "0.0.0.0", port)
        if kind == TCP:
            server.listen()
        server.settimeout(0.1)
        _servers.append(threading.Thread(target=_serve, args=(server, kind)))
        _servers[-1].start()

    def ask(self, host: str, port: int, kind: int = TCP) -> str | None:
        """What the server at this address says; None when it cannot be reached."""
        return self.call(lambda: _ask(host, port, kind))


_servers: list[threading.Thread] = []
_enough = threading.Event()


@pytest.fixture(autouse=True)
def servers(vmm: Instance) -> Iterator[None]:
    """Servers end with the test, before its workloads: a socket keeps its namespace alive."""
    yield
    stop_servers()


def stop_servers() -> None:
    _enough.set()
    while _servers:
        _servers.pop().join()
    _enough.clear()


def _serve(server: socket.socket, kind: int) -> None:
    with server:
        while not _enough.is_set():
            with contextlib.suppress(TimeoutError):
                _serve_one(server, kind)


def _serve_one(server: socket.socket, kind: int) -> None:
    if kind == UDP:
        _, peer = server.recvfrom(100)
        server.sendto(peer[0].encode(), peer)
    else:
        client, peer = server.accept()
        with client:
            client.sendall(peer[0].encode())


def _ask(host: str, port: int, kind: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as client:
        client.settimeout(1)
        try:
            client.connect((host, port))
            if kind == UDP:
                client.send(b"?")
            return client.recv(100).decode() or None
        except OSError:
            return None


def eventually(wanted: Callable[[], T]) -> T:
    """The first true value, within a few seconds."""
    end = time.monotonic() + 8
    while not (found := wanted()) and time.monotonic() < end:
        time.sleep(0.05)
    assert found
    return found


def started(vmm: Instance, *argv: str) -> tuple[str, Space]:
    """A workload that sleeps, its id and its namespace."""
    workload = vmm.out("run", "-d", *argv, "busybox", "sleep", "1000")
    return workload, Space(f"/proc/{vmm.inspect(workload)['State']['Pid']}/ns/net")


def address(vmm: Instance, name: str) -> str:
    return str(vmm.inspect(name)["NetworkSettings"]["IPAddress"])


def hosts(vmm: Instance, name: str) -> str:
    return vmm.out("exec", name, "cat", "/etc/hosts")


@pytest.fixture
def host(instance: Instance) -> Space:
    return Space(f"/run/netns/{instance.namespace}")


@pytest.fixture
def peer(instance: Instance) -> Iterator[Space]:
    """Another machine, one hop away."""
    name = f"{instance.namespace}-peer"
    ours = ["ip", "-n", instance.namespace]
    for argv in (
        ["ip", "netns", "add", name],
        [*ours, "link", "add", "wan0", "type", "veth", "peer", "name", "wan1", "netns", name],
        [*ours, "addr", "add", f"{WAN}/24", "dev", "wan0"],
        [*ours, "link", "set", "wan0", "up"],
        ["ip", "-n", name, "addr", "add", f"{PEER}/24", "dev", "wan1"],
        ["ip", "-n", name, "link", "set", "wan1", "up"],
        ["ip", "-n", name, "route", "add", "default", "via", WAN],
    ):
        subprocess.run(argv, check=True)
    yield Space(f"/run/netns/{name}")
    subprocess.run([*ours, "link", "del", "wan0"], check=True)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def second(instance: Instance, tmp_path: Path) -> Iterator[Instance]:
    """Another instance on the same host, which has never had a network."""
    made = Instance(tmp_path / "second", instance.namespace)
    made.run("image", "bootstrap", "busybox")
    yield made
    stop_servers()
    for workload in made.out("ps", "-aq").split():
        made.run("rm", "-f", workload)
    eventually(lambda: made.run("system", "teardown", check=False).returncode == 0)
    left = [link for link in made._links() if link == made.mark]
    left += [t for t in made.inside("nft", "list", "tables").stdout.split() if t == made.mark]
    left += [t for t in made._traces(everything=True) if made.mark in t or str(made.root) in t]
    assert left == []
    shutil.rmtree(made.run_dir)


def test_neighbours_know_each_other_by_name(vmm: Instance) -> None:
    first, _ = started(vmm, "--name", "alpha", "-h", "db")
    started(vmm, "--name", "beta")
    where = address(vmm, "alpha")
    for name in ("alpha", "db", first[:12], where):
        vmm.run("exec", "beta", "ping", "-c", "1", "-W", "3", name)
    vmm.run("rename", "alpha", "gamma")
    assert "gamma" in hosts(vmm, "beta") and "alpha" not in hosts(vmm, "beta")
    vmm.run("stop", "-t", "0", "gamma")
    assert where not in hosts(vmm, "beta")
    vmm.run("start", "gamma")
    assert where in hosts(vmm, "beta") and address(vmm, "gamma") == where
    assert address(vmm, "beta") in hosts(vmm, "gamma")
    vmm.run("restart", "-t", "0", "gamma")
    assert address(vmm, "gamma") == where
    assert vmm.out("exec", "beta", "ping", "-c", "1", "-W", "3", "gamma")


def test_names_given_by_hand(vmm: Instance) -> None:
    text = vmm.out(
        "run", "--rm", "-h", "box.example.org", "--dns", "192.0.2.53", "--dns-search", "lab.test",
        "--add-host", "db:192.0.2.7", "--add-host", "six:[2001:db8::1]",
        "--add-host", "gw:host-gateway", "busybox",
        "sh", "-c", "hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts",
    )  # fmt: skip
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == lines[1] == ["box.example.org"]
    assert ["nameserver", "192.0.2.53"] in lines and ["search", "lab.test"] in lines
    assert ["192.0.2.7", "db"] in lines and ["2001:db8::1", "six"] in lines
    gateway = vmm.out("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}")
    assert [json.loads(gateway)[0]["Gateway"], "gw"] in lines
    assert [line for line in lines if line[1:3] == ["box.example.org", "box"]]


def test_a_port_without_address_is_published_on_loopback(
    vmm: Instance, host: Space, peer: Space
) -> None:
    workload, inside = started(vmm, "--name", "web", "-p", "8081:80", "-p", "5301:53/udp")
    inside.serve(80)
    inside.serve(53, UDP)
    bindings = vmm.inspect("web")["NetworkSettings"]["Ports"]
    assert [b["HostIp"] for b in bindings["80/tcp"]] == ["127.0.0.1", "::1"]
    for port, kind in ((8081, TCP), (5301, UDP)):
        for loopback in ("127.0.0.1", "::1"):
            assert host.ask(loopback, port, kind), (loopback, port)
            with pytest.raises(OSError) as caught:
                host.bound(kind, loopback, port)
            assert caught.value.errno == errno.EADDRINUSE
        assert host.ask(UPLINK, port, kind) is None
        assert peer.ask(WAN, port, kind) is None
    assert vmm.inside("grep", "-l", "1", "-r", "/proc/sys/net/ipv4/conf/all/route_localnet",
                      "/proc/sys/net/ipv4/conf/lo/route_localnet").stdout == ""  # fmt: skip
    _kill_relay(workload)
    eventually(lambda: host.ask("127.0.0.1", 8081))
    vmm.run("kill", "web")
    host.bound(TCP, "127.0.0.1", 8081).close()
    assert _relays(workload) == []


def _relays(workload: str) -> list[int]:
    """The port relays of a workload: children of its shim."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            shim = Path(f"/proc/{parent}/cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if command[0].endswith(b"vmm-relay") and workload.encode() in shim:
            found.append(int(entry.name))
    return found


def _kill_relay(workload: str) -> None:
    (relay,) = _relays(workload)
    os.kill(relay, 9)
    eventually(lambda: [pid for pid in _relays(workload) if pid != relay])


def test_ranges_and_every_exposed_port(vmm: Instance, tmp_path: Path, host: Space) -> None:
    _, inside = started(vmm, "--name", "many", "-p", "7001-7003:81-83", "-p", "127.0.0.1::90")
    for port in (81, 83, 90):
        inside.serve(port)
    assert host.ask("127.0.0.1", 7001) and host.ask("127.0.0.1", 7003)
    assert vmm.out("port", "many", "82/tcp").splitlines() == ["127.0.0.1:7002", "[::1]:7002"]
    chosen = vmm.out("port", "many", "90").rpartition(":")[2]
    assert host.ask("127.0.0.1", int(chosen)) and host.ask("::1", int(chosen)) is None
    (tmp_path / "Dockerfile").write_text("FROM busybox\nEXPOSE 80 53/udp\n")
    vmm.run("build", "-q", "-t", "exposed", str(tmp_path))
    vmm.run("run", "-d", "--name", "all", "-P", "exposed", "sleep", "100")
    ports = vmm.inspect("all")["NetworkSettings"]["Ports"]
    assert set(ports) == {"80/tcp", "53/udp"} and all(ports.values())
    assert len({binding["HostPort"] for binding in ports["80/tcp"]}) == 1
    vmm.run("rm", "-f", "all")
    vmm.run("rmi", "exposed")


def test_a_port_on_every_address(vmm: Instance, host: Space, peer: Space) -> None:
    _, inside = started(vmm, "--name", "open", "-p", "0.0.0.0:8082:80", "-p", "0.0.0.0:5302:53/udp")
    _, neighbour = started(vmm)
    inside.serve(80)
    inside.serve(53, UDP)
    for port, kind in ((8082, TCP), (5302, UDP)):
        assert peer.ask(WAN, port, kind) == PEER
        for here in ("127.0.0.1", UPLINK):
            assert host.ask(here, port, kind), (here, port)
            assert here == "127.0.0.1" or neighbour.ask(here, port, kind), (here, port)
        # A workload that calls itself by any of the host's addresses gets the answer from it.
        assert inside.ask(UPLINK, port, kind) and inside.ask(WAN, port, kind), port
    assert peer.ask(address(vmm, "open"), 80) is None  # what is not published stays closed


def test_a_port_in_use_is_refused_and_nothing_is_left(vmm: Instance, host: Space) -> None:
    for kind, suffix in ((TCP, ""), (UDP, "/udp")):
        with host.bound(kind, "::1", 8083) as other:
            if kind == TCP:
                other.listen()
            done = vmm.run("run", "-d", "-p", f"8083:80{suffix}", "busybox", "true", check=False)
        assert done.returncode == 125 and done.stdout == ""
        assert "Bind for [::1]:8083 failed: port is already allocated" in done.stderr
        assert "ss -" in done.stderr
        assert vmm.out("ps", "-aq") == ""
        host.bound(kind, "127.0.0.1", 8083).close()
    started(vmm, "--name", "first", "-p", "8083:80")
    again = vmm.run("run", "-d", "--name", "next", "-p", "8083:80", "busybox", "true", check=False)
    assert again.returncode == 125 and "port is already allocated" in again.stderr
    wrong = vmm.run("run", "-d", "-p", "192.0.2.99:8084:80", "busybox", "true", check=False)
    assert wrong.returncode == 125 and "no such address" in wrong.stderr
    assert vmm.out("ps", "-a", "--format", "{{.Names}}") == "first"


def test_networks_none_and_host(vmm: Instance) -> None:
    alone = vmm.out("run", "--rm", "--network", "none", "busybox", "ls", "/sys/class/net")
    assert alone.split() == ["lo"]
    shared = vmm.out("run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net")
    assert {"lo", "up0"} <= set(shared.split())
    shown = vmm.out("network", "ls", "--format", "{{.Name}} {{.Driver}}").splitlines()
    assert [line.split()[0] for line in shown] == ["bridge", "host", "none"]


def test_a_flushed_ruleset_is_told_and_restored(vmm: Instance, host: Space, peer: Space) -> None:
    _, inside = started(vmm, "-p", "8085:80", "-p", "0.0.0.0:8086:80")
    inside.serve(80)
    assert vmm.run("ps").stderr == ""
    vmm.inside("nft", "flush", "ruleset")
    assert host.ask("127.0.0.1", 8085) and host.ask("::1", 8085) and host.ask("127.0.0.1", 8086)
    for command in (("ps",), ("system", "info")):
        done = vmm.run(*command)
        assert f"table inet {vmm.mark} was removed or changed" in done.stderr + done.stdout
    vmm.run("run", "--rm", "busybox", "true")
    assert vmm.run("ps").stderr == ""
    assert peer.ask(WAN, 8086) == PEER


def test_workloads_that_start_at_once_get_addresses_of_their_own(vmm: Instance) -> None:
    names = [f"at-once-{n}" for n in range(5)]
    runs = [
        vmm.popen("run", "-d", "--name", name, "busybox", "sleep", "100", stdout=subprocess.PIPE)
        for name in names
    ]
    assert [run.wait(40) for run in runs] == [0] * len(runs)
    for run in runs:
        run.communicate()
    shown: list[dict[str, Any]] = json.loads(vmm.out("inspect", *names))
    addresses = [one["NetworkSettings"]["IPAddress"] for one in shown]
    assert len(set(addresses)) == len(names) and "" not in addresses
    known = hosts(vmm, names[0])
    assert all(name in known for name in names)


def test_a_host_without_nft_has_the_other_networks(second: Instance, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nsenter").symlink_to(shutil.which("nsenter") or "nsenter")
    bare = {"PATH": str(programs)}
    done = second.run("run", "--rm", "busybox", "true", env=bare, check=False)
    assert done.returncode == 125 and "nft" in done.stderr
    assert "--network none or --network host" in done.stderr
    assert second.out("ps", "-aq") == ""
    for network in ("none", "host"):
        second.run("run", "--rm", "--network", network, "busybox", "true", env=bare)


def test_forwarding_is_switched_on_and_said(
    vmm: Instance, second: Instance, host: Space, peer: Space
) -> None:
    vmm.inside("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    first = second.run("run", "-d", "--name", "other", "busybox", "sleep", "1000")
    assert "ip_forward was 0 and is now 1" in first.stderr
    assert second.run("run", "--rm", "busybox", "true").stderr == ""
    _, inside = started(vmm)
    peer.serve(80)
    assert inside.ask(PEER, 80) == WAN  # out, as the host
    Space(f"/proc/{second.inspect('other')['State']['Pid']}/ns/net").serve(80)
    where = address(second, "other")
    assert host.ask(where, 80)
    assert inside.ask(where, 80) is None  # instances never meet
