"""The port relay, between loopback addresses of a network namespace of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.shim.shimlab import LAXITY, alive, eventually

TARGET = "127.0.0.9"


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    if os.geteuid():
        pytest.skip("not root")
    name = f"vmmtest-relay-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    try:
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Network:
    """Sockets inside the namespace, made in a thread that entered it (setns(2) is per thread)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, family: int, type: int) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            with Path(self._path).open() as namespace:
                _setns(namespace.fileno())
            made.append(socket.socket(family, type))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        made[0].settimeout(5)
        return made[0]

    def bound(self, address: str, type: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.open(family, type)
        made.bind((address, 0))
        return made

    def connect(self, listener: socket.socket) -> socket.socket:
        made = self.open(listener.family, socket.SOCK_STREAM)
        made.connect(listener.getsockname()[:2])
        return made


def _setns(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def net(netns: str) -> Network:
    return Network(netns)


Relay = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def relay(programs: Path, netns: str) -> Iterator[Relay]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*ports: tuple[socket.socket, str, int, str]) -> subprocess.Popen[bytes]:
        specs = [
            f"{s.fileno()},{'udp' if s.type & socket.SOCK_DGRAM else 'tcp'},{ip},{port},{mode}"
            for s, ip, port, mode in ports
        ]
        fds = [s.fileno() for s, *_ in ports]
        inside = ["nsenter", f"--net={netns}"]
        argv = [*inside, str(programs / "vmm-relay"), *specs]
        started.append(subprocess.Popen(argv, pass_fds=fds))
        pid = started[-1].pid
        status = Path(f"/proc/{pid}/status")
        eventually(lambda: "vmm-relay" in status.read_text() and "65534" in status.read_text())
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def read_all(connection: socket.socket) -> bytes:
    data = bytearray()
    while chunk := connection.recv(65536):
        data += chunk
    return bytes(data)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_tcp_both_ways_with_half_close(net: Network, relay: Relay, address: str) -> None:
    server, published = net.bound(TARGET), net.bound(address)
    server.listen()
    relay((published, TARGET, server.getsockname()[1], "serve"))
    client = net.connect(published)
    peer, _ = server.accept()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read_all(peer) == b"question"
    peer.sendall(b"answer")
    peer.close()
    assert read_all(client) == b"answer"


def test_tcp_much_data_with_a_slow_reader(net: Network, relay: Relay) -> None:
    server, published = net.bound(TARGET), net.bound("127.0.0.1")
    server.listen()
    process = relay((published, TARGET, server.getsockname()[1], "serve"))
    client = net.connect(published)
    peer, _ = server.accept()
    data = os.urandom(1 << 20) * 24

    def send() -> None:
        client.sendall(data)
        client.close()

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(0.3)
    resident = Path(f"/proc/{process.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(resident) < 3000 * LAXITY
    assert read_all(peer) == data
    sender.join()


def test_a_workload_that_does_not_listen_resets(net: Network, relay: Relay) -> None:
    published = net.bound("127.0.0.1")
    relay((published, TARGET, 1, "serve"))
    with pytest.raises(ConnectionResetError):
        net.connect(published).recv(1)


def test_a_reset_is_passed_on(net: Network, relay: Relay) -> None:
    server, published = net.bound(TARGET), net.bound("127.0.0.1")
    server.listen()
    relay((published, TARGET, server.getsockname()[1], "serve"))
    client = net.connect(published)
    peer, _ = server.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_connections_beyond_the_limit_are_refused(net: Network, relay: Relay) -> None:
    server, published = net.bound(TARGET), net.bound("127.0.0.1")
    server.listen(2000)
    process = relay((published, TARGET, server.getsockname()[1], "serve"))
    clients = [net.connect(published) for _ in range(1024)]
    fds = Path(f"/proc/{process.pid}/fd")
    eventually(lambda: len(list(fds.iterdir())) >= 2048)
    with pytest.raises(ConnectionResetError):
        net.connect(published).recv(1)
    for client in clients:
        client.close()
    server.close()
    eventually(lambda: len(list(fds.iterdir())) < 20)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_udp_keeps_clients_apart(net: Network, relay: Relay, address: str) -> None:
    server = net.bound(TARGET, socket.SOCK_DGRAM)
    published = net.bound(address, socket.SOCK_DGRAM)
    relay((published, TARGET, server.getsockname()[1], "serve"))
    clients = [net.bound(address, socket.SOCK_DGRAM) for _ in range(3)]
    where = published.getsockname()[:2]
    for n, client in enumerate(clients):
        client.sendto(b"from %d" % n, where)
    for _ in clients:
        data, sender = server.recvfrom(100)
        server.sendto(b"re: " + data, sender)
    assert [c.recv(100) for c in clients] == [b"re: from %d" % n for n in range(3)]


def test_hold_reserves_without_listening(net: Network, relay: Relay) -> None:
    held = net.bound("127.0.0.1")
    process = relay((held, TARGET, 1, "hold"))
    where = held.getsockname()
    held.close()
    other = net.open(socket.AF_INET, socket.SOCK_STREAM)
    with pytest.raises(OSError, match="in use"):
        other.bind(where)
    with pytest.raises(ConnectionRefusedError):
        other.connect(where)
    assert alive(process.pid)


def test_it_has_no_rights(net: Network, relay: Relay) -> None:
    process = relay((net.bound("127.0.0.1"), TARGET, 1, "hold"))
    status = Path(f"/proc/{process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["Uid"].split()[0], fields["NoNewPrivs"]) == ("65534", "1")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0


@pytest.mark.parametrize(
    "spec", ["0,tcp,1.2.3.4,80,serve", "3,tcp,x,80,serve", "3,sctp,::1,8,hold"]
)
def test_a_wrong_argument_is_named(programs: Path, spec: str) -> None:
    done = subprocess.run([programs / "vmm-relay", spec], capture_output=True, text=True)
    assert done.returncode == 125
    assert spec in done.stderr


def test_it_dies_with_its_parent(net: Network, programs: Path, tmp_path: Path) -> None:
    held = net.bound("127.0.0.1")
    script = f"{programs}/vmm-relay {held.fileno()},tcp,{TARGET},1,hold & echo $!; wait"
    parent = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, pass_fds=[held.fileno()]
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    status = Path(f"/proc/{pid}/status")
    eventually(lambda: "NoNewPrivs:\t1" in status.read_text())
    time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    eventually(lambda: not alive(pid))
