"""Real network namespaces: a host, the world outside it, and workloads on its bridge."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vmm.model.backend import Endpoint
from vmm.model.errors import Conflict
from vmm.network.service import NetworkService
from vmm.ports.runner import HostRunner

CLONE_NEWNET = 0x40000000
WORLD, UPLINK = "203.0.113.2", "203.0.113.1"
_libc = ctypes.CDLL(None, use_errno=True)


def sh(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def _enter(path: str) -> None:
    with open(path) as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """One named network namespace; what runs in it runs in forked children."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self._children: list[int] = []
        sh("ip", "netns", "add", name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *argv: str) -> str:
        return sh("ip", "-n", self.name, *argv)

    def sh(self, *argv: str) -> str:
        return sh("nsenter", f"--net={self.path}", *argv)

    def python(self, code: str, *argv: str) -> str:
        """Run code in a new interpreter, for what depends on the modules loaded."""
        return self.sh(sys.executable, "-c", code, *argv)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function's result or exception, from a child in this namespace."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._child(writer, lambda: function(*args, **kwargs))
        os.close(writer)
        with open(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        good, value = pickle.loads(data)
        if not good:
            raise value
        return value

    def enter(self) -> None:
        """Move this process here for good; for forked children."""
        _enter(self.path)

    def _child(self, writer: int, function: Callable[[], Any]) -> None:
        signal.alarm(30)
        try:
            self.enter()
            answer = (True, function())
        except BaseException as error:
            answer = (False, error)
        with open(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)

    def serve(self, port: int, kind: int = socket.SOCK_STREAM, fd: int = -1) -> None:
        """Answer every client with its own address as seen here, until the test ends."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                self.enter()
                server = socket.socket(fileno=fd) if fd >= 0 else _bound(kind, port)
                os.write(writer, b"1")
                _answer(server, kind)
            finally:
                os._exit(1)
        os.close(writer)
        self._children.append(child)
        assert select.select([reader], [], [], 10)[0]
        assert os.read(reader, 1) == b"1"
        os.close(reader)

    def ask(self, host: str, port: int, kind: int = socket.SOCK_STREAM) -> str | None:
        """What the server at this address answers; None when it cannot be reached."""
        answer: str | None = self.call(_ask, host, port, kind)
        return answer

    def close(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        sh("ip", "netns", "del", self.name)


def _bound(kind: int, port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def _answer(server: socket.socket, kind: int) -> None:
    while True:
        if kind == socket.SOCK_DGRAM:
            _, peer = server.recvfrom(100)
            server.sendto(peer[0].encode(), peer)
        else:
            client, peer = server.accept()
            with client:
                client.sendall(peer[0].encode())


def _ask(host: str, port: int, kind: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as client:
        client.settimeout(0.4)
        try:
            client.connect((host, port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"?")
            return client.recv(100).decode()
        except OSError:
            return None


class MemoryClaims:
    """The claims of addresses, in a dictionary."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def claim_address(self, network_id: str, workload_id: str, candidates: Iterable[str]) -> str:
        for address in candidates:
            if self.held.setdefault((network_id, address), workload_id) == workload_id:
                return address
        raise Conflict("no address is free")

    def release(self, workload_id: str) -> None:
        self.held = {k: v for k, v in self.held.items() if v != workload_id}

    def addresses(self, network_id: str) -> dict[str, str]:
        return {key[1]: who for key, who in self.held.items() if key[0] == network_id}


class Lab:
    """A host (namespace) with an uplink to the world, and instances of vmm on it."""

    def __init__(self, tmp: Path, prefix: str) -> None:
        self.tmp, self.prefix = tmp, prefix
        self._stack = contextlib.ExitStack()
        self._count = 0
        self.claims: dict[str, MemoryClaims] = {}
        self.host, self.world = self.namespace(), self.namespace()
        self.host.ip("link", "add", "up0", "type", "veth", "peer", "w0", "netns", self.world.name)
        self.host.ip("address", "add", f"{UPLINK}/24", "dev", "up0")
        self.host.ip("link", "set", "up0", "up")
        self.world.ip("address", "add", f"{WORLD}/24", "dev", "w0")
        self.world.ip("link", "set", "w0", "up")

    def namespace(self) -> Namespace:
        self._count += 1
        made = Namespace(f"{self.prefix}-{self._count}")
        self._stack.callback(made.close)
        return made

    def service(self, mark: str = "vmm-1a2b3c4d", **changes: Any) -> NetworkService:
        given: dict[str, Any] = {
            "mark": mark,
            "bridge": mark,
            "root": self.tmp / mark / "root",
            "run_dir": self.tmp / mark / "run",
            "pools": ("172.17.0.0/12",),
            "prefix": 20,
            "mtu": 1500,
            "claims": self.claims.setdefault(mark, MemoryClaims()),
            "runner": HostRunner(),
            "host_lock": self.tmp / "subnets.lock",
        }
        return NetworkService(**{**given, **changes})

    def workload(self, service: NetworkService, workload_id: str) -> tuple[Namespace, Endpoint]:
        """A namespace attached to the bridge as the launcher attaches a workload."""
        endpoint = service.endpoint(service.inspect("bridge"), workload_id)
        inside = self.namespace()
        self.host.ip(
            "link", "add", endpoint.link, "master", endpoint.bridge, "up", "type", "veth",
            "peer", "eth0", "address", endpoint.mac, "netns", inside.name,
        )  # fmt: skip
        inside.ip("address", "add", f"{endpoint.address}/{endpoint.prefix}", "dev", "eth0")
        inside.ip("link", "set", "eth0", "up")
        inside.ip("route", "add", "default", "via", endpoint.gateway)
        return inside, endpoint

    def close(self) -> None:
        self._stack.close()
