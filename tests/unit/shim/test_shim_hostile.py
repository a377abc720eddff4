"""Broken and hostile clients cannot hang, crash or fill the shim."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shim.shimlab import LAXITY, Lab, eventually
from vmm.control import Control, spawn_shim
from vmm.control import frames as f
from vmm.model.errors import LaunchError, VmmError
from vmm.model.launch import op

TYPES = [*range(1, 4), *range(10, 21), *range(30, 35), 0, 99, 255]


def raw(lab: Lab) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(lab.run / "ctl.sock"))
    client.settimeout(5)
    return client


def until_closed(client: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := client.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def resident(lab: Lab) -> int:
    """KiB of the shim in memory."""
    text = Path(f"/proc/{lab.status()['shim_pid']}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_a_newer_major_version_is_refused(lab: Lab) -> None:
    lab.start("sleep", "60")
    with raw(lab) as client:
        client.sendall(f.encode(f.HELLO, f.encode_args("2.0")))
        assert b"protocol 2.0 is not understood" in until_closed(client)


def test_a_connection_begins_with_hello(lab: Lab) -> None:
    lab.start("sleep", "60")
    with raw(lab) as client:
        client.sendall(f.encode(f.STOP, f.encode_args(9, 0)))
        assert b"begins with HELLO" in until_closed(client)
    assert lab.status()["status"] == "running"


def test_unknown_requests_and_wrong_arguments_are_answered(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    for type, payload in [(77, b""), (f.SIGNAL, f.encode_args("nine", 0, 0)), (f.STOP, b"\1\0")]:
        control.send(type, payload)
        frame = control.next_frame(5)
        assert frame is not None
        assert frame.type == f.ERROR
    with pytest.raises(VmmError):
        control.signal(65)


def test_broken_framing_is_cut_off(lab: Lab) -> None:
    lab.start("sleep", "60")
    for header in (b"\xff\xff\xff\xff\0\0\x0a\0", b"\0\0\0\0\0\0\x0a\x01"):
        with raw(lab) as client:
            client.sendall(f.encode(f.HELLO, f.encode_args("1.0")) + header)
            until_closed(client)
    assert lab.status()["status"] == "running"


def random_frame(rng: random.Random) -> bytes:
    type = rng.choice([t for t in TYPES if t not in (f.START, f.STOP, f.SIGNAL)])
    size = rng.choice([0, 1, 4, 5, 12, 40, 700])
    payload = rng.randbytes(size)
    if rng.random() < 0.6:
        args = [rng.randbytes(rng.randrange(6)) for _ in range(rng.randrange(7))]
        payload = f.encode_args(*args)
        if rng.random() < 0.3 and payload:
            at = rng.randrange(len(payload))
            payload = payload[:at] + rng.randbytes(1) + payload[at + 1 :]
    return f.encode(type, payload, rng.choice([0, 0, 1, 2, 65535]))


def test_random_frames_do_no_harm(lab: Lab) -> None:
    lab.start("sleep", "60")
    rng = random.Random(20171)
    for _ in range(150):
        with raw(lab) as client:
            client.setblocking(False)
            data = f.encode(f.HELLO, f.encode_args("1.0"))
            data += b"".join(random_frame(rng) for _ in range(rng.randrange(1, 30)))
            if rng.random() < 0.3:
                data = data[: rng.randrange(len(data))]
            try:
                client.sendall(data)
            except OSError:
                continue
    assert lab.status()["status"] == "running"
    assert resident(lab) < 3000 * LAXITY


def test_connections_are_bounded(lab: Lab) -> None:
    lab.start("sleep", "60")
    pid = lab.status()["shim_pid"]
    clients = [raw(lab) for _ in range(400)]
    try:
        eventually(lambda: 200 < len(os.listdir(f"/proc/{pid}/fd")) <= 275)
    finally:
        for client in clients:
            client.close()
    eventually(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 20)
    assert lab.status()["status"] == "running"


def test_a_client_that_asks_and_never_reads_costs_a_bounded_buffer(lab: Lab) -> None:
    lab.start("sleep", "60")
    with raw(lab) as client:
        client.setblocking(False)
        client.sendall(f.encode(f.HELLO, f.encode_args("1.0")))
        asked = f.encode(f.STATUS) * 1000
        for _ in range(400):
            try:
                client.send(asked)
            except BlockingIOError:
                break
        else:
            raise AssertionError("the shim read 400,000 requests without sending an answer")
        assert resident(lab) < 6000 * LAXITY
        assert lab.status()["status"] == "running"


def test_half_a_frame_is_no_hindrance(lab: Lab) -> None:
    lab.start("sleep", "60")
    with raw(lab) as client:
        client.sendall(f.encode(f.HELLO, f.encode_args("1.0")) + b"\x10\0\0")
        assert lab.status()["status"] == "running"


def test_another_user_is_not_served(lab: Lab) -> None:
    """Even one who got at the socket: the peer's identity is asked of the kernel."""
    lab.start("sleep", "60")
    path = lab.run / "ctl.sock"
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    program = (
        "import os,socket,sys; os.chdir(sys.argv[1]); os.setuid(65534);"
        "s=socket.socket(socket.AF_UNIX); s.connect('ctl.sock'); s.settimeout(5);"
        "sys.exit(0 if s.recv(10) == b'' else 1)"
    )
    connected.close()
    os.chmod(path, 0o777)
    os.chmod(lab.run, 0o755)
    assert subprocess.run([sys.executable, "-c", program, lab.run]).returncode == 0
    assert Control.connect(str(path)).status()


@contextlib.contextmanager
def small_disk(lab: Lab) -> Iterator[tuple[Path, Path]]:
    """A disk of two pages for the state alone, and the plan of a workload that ends with 7."""
    disk, path = lab.path / "disk", lab.path / "plan"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", disk], check=True)
    plan = lab.plan("sh", "-c", "exit 7", log=("none",))
    state = op("state", str(disk / "state.json"))
    shim = tuple(state if o.name == "state" else o for o in plan.shim)
    path.write_bytes(plan._replace(shim=shim).encode())
    try:
        yield disk, path
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


def test_a_full_disk_still_has_the_true_state(lab: Lab) -> None:
    with small_disk(lab) as (disk, plan):
        spawn_shim(lab.programs, plan)
        fill(disk)
        control = lab.control()
        control.expect_exit()
        control.start()
        assert control.wait_closed()
        state = json.loads((disk / "state.json").read_text())
        assert (state["status"], state["exit_code"]) == ("exited", 7)


def test_nothing_starts_whose_state_could_not_be_told(lab: Lab) -> None:
    with small_disk(lab) as (disk, plan):
        fill(disk)
        with pytest.raises(LaunchError, match=rf"cannot write {disk}/state\.json: No space left"):
            spawn_shim(lab.programs, plan)
        assert not (disk / "state.json").exists()


def test_no_descriptors_left_costs_no_time(lab: Lab) -> None:
    """A caller who cannot be accepted waits in the queue; the shim does not spin on it."""
    lab.start("sleep", "60")
    pid = lab.status()["shim_pid"]
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))

    def cpu() -> int:
        return sum(
            map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        )

    with raw(lab) as waiting:
        before = cpu()
        time.sleep(1)
        assert cpu() - before < 20, "a fifth of a second"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        waiting.settimeout(5)
        assert waiting.recv(8)
    assert Path(f"/proc/{pid}/comm").read_text() == "vmm-shim\n"
