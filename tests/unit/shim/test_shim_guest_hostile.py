"""Whatever a guest does, the shim goes on, and says what was wrong with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import LAXITY, alive, collect, command, eventually
from vmm.model.errors import LaunchError, VmmError
from vmm.model.ids import new_id
from vmm.model.launch import op


@pytest.fixture
def guest(tmp_path: Path, programs: Path, root: Path) -> Iterator[GuestLab]:
    if os.geteuid():
        pytest.skip("not root")
    lab = GuestLab(tmp_path, programs, root)
    yield lab
    lab.close()


def peak(pid: int) -> int:
    """KiB the shim ever had in memory; 0 when it is gone already."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int((text.partition("VmHWM:")[2].split() or ["0"])[0])


BROKEN = {
    "flood": "more output than it may",
    "unasked": "answered what was not asked",
    "unknown": "unknown type 77",
    "framing": "broke the framing",
    "elsewhere": "more output than it may",
    "credit": "credit that it was not owed",
    "listing": "a list that was not asked for",
    "exit-of-none": "the end of something that does not run",
    "greets-twice": "unknown type 1",
    "garbage": "guest",
    "odd-exit": "the end of something",
}


@pytest.mark.parametrize("mode", BROKEN)
def test_a_guest_that_breaks_the_protocol_is_ended(guest: GuestLab, mode: str) -> None:
    guest.mode = mode
    control = guest.start("true")
    shim = guest.state()["shim_pid"]
    # A client that does not read: what the guest sends beyond its credit is kept nowhere.
    eventually(lambda: "destroy" in guest.calls())
    memory = peak(shim)
    assert memory < 8000 * LAXITY
    assert memory or mode != "flood"
    assert collect(control)[2] == 137
    state = guest.ended()
    assert (state["exit_code"], state["signal"]) == (137, 9)
    assert state["error"].startswith("guest ")
    assert BROKEN[mode] in state["error"]
    eventually(lambda: not alive(guest.machine()))
    assert guest.calls() == ["start", "destroy"]


def test_the_power_button_asks_the_workload_to_end_once(guest: GuestLab) -> None:
    """With the stop's signal; it is not restarted, but does not count as stopped by hand."""
    guest.mode = "button"
    script = "trap 'echo told; (sleep 0.5); exit 5' USR1; while :; do sleep 0.05; done"
    stop = op("stop", int(signal.SIGUSR1), 8000)
    guest.spawn("sh", "-c", script, shim=(op("restart", "always", 0), stop))
    control = guest.control()
    control.attach()
    control.expect_exit()
    control.start()
    assert collect(control) == (b"told\n", b"", 5)
    state = guest.ended()
    assert (state["manual_stop"], state["restart_count"], state["error"]) == (False, 0, "")
    events = (guest.path / "events.jsonl").read_text()
    assert events.count('"kill"') == 1 and guest.calls() == ["start"]


def test_a_guest_that_lies_about_its_end_is_ended(guest: GuestLab) -> None:
    guest.mode = "lie"
    control = guest.start("true")
    began = time.monotonic()
    collect(control)
    assert 8 < time.monotonic() - began < 14
    assert guest.ended()["error"] == "guest did not power off within 10 s"
    eventually(lambda: not alive(guest.machine()))


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("absent", "was not ready within 1 s"),
        ("noise", "guest"),
        ("silent", "did not start its workload within 1 s"),
        ("die", "ended: it crashed"),
    ],
)
def test_a_guest_that_does_not_come_up(guest: GuestLab, mode: str, why: str) -> None:
    guest.mode, guest.boot_ms, guest.answer_ms = mode, 1500, 1000
    guest.spawn("true")
    control = guest.control()
    with pytest.raises(LaunchError, match=why) as caught:
        control.start()
    assert caught.value.exit_code == 125
    assert control.wait_closed()
    state = guest.state()
    assert (state["status"], state["exit_code"]) == ("created", 125)
    assert why in state["error"]
    eventually(lambda: not alive(guest.machine()))


def test_an_error_of_the_plan_is_the_guests_own(guest: GuestLab) -> None:
    guest.spawn("no-such-program")
    with pytest.raises(LaunchError) as caught:
        guest.control().start()
    assert (caught.value.exit_code, caught.value.step) == (127, "exec no-such-program")
    assert caught.value.message == "no-such-program: No such file or directory [2J"
    assert guest.calls() == ["start"], "asked to, it powered off"


def test_a_control_program_that_fails(guest: GuestLab) -> None:
    (guest.path / "broken").write_text("start suspend")
    guest.spawn("sleep", "60")
    with pytest.raises(LaunchError, match=r"^libvirt is out of order: start$"):
        guest.control().start()
    guest.close()
    (guest.path / "broken").write_text("suspend destroy")
    control = guest.start("sleep", "60")
    with pytest.raises(VmmError, match="out of order: suspend"):
        control.pause()
    assert guest.status()["status"] == "running"
    os.killpg(guest.machine(), signal.SIGKILL)
    assert guest.ended()["error"] == "guest ended: it crashed"


def test_a_guest_that_cannot_be_destroyed_is_reported(guest: GuestLab) -> None:
    (guest.path / "broken").write_text("destroy")
    guest.mode = "unknown"
    guest.start("true")
    state = guest.ended()
    assert state["error"] == "guest could not be ended: libvirt is out of order: destroy"
    assert guest.calls() == ["start", "destroy", "destroy", "destroy"]


def test_a_guest_that_vanishes(guest: GuestLab) -> None:
    guest.mode = "vanish"
    (guest.path / "reason").write_text("destroyed by \x1b[1msomebody\n\x00second line")
    control = guest.start("true")
    assert collect(control) == (b"last words\n", b"", 137)
    assert guest.ended()["error"] == "guest ended: destroyed by  [1msomebody"
    assert guest.calls() == ["start", "reason"]


def test_a_mute_guest_delays_nobody_for_ever(guest: GuestLab) -> None:
    guest.mode, guest.answer_ms = "mute", 500
    control = guest.start("sleep", "60")
    for ask in (control.stats, control.top, lambda: control.exec(new_id(), command("true"))):
        with pytest.raises(VmmError, match="did not answer in time"):
            ask()
    assert guest.status()["status"] == "running"
    guest.control().stop(15, 100)
    assert guest.ended()["exit_code"] == 137
    assert guest.calls() == ["start", "destroy"]


def test_a_connection_lost_is_made_again(guest: GuestLab) -> None:
    """QEMU connects again; the workload goes on, an exec of the lost connection is over."""
    control = guest.start("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    channel, _ = control.exec(new_id(), command("sleep", "50"))
    shim = guest.status()["shim_pid"]
    cut_connection(shim, str(guest.path / "channel"))
    assert collect(control, channel)[2] == 137
    again, _ = eventually(lambda: attempt(guest))
    assert again
    assert guest.status()["status"] == "running"
    assert guest.calls() == ["start"]


def attempt(guest: GuestLab) -> tuple[bytes, int] | None:
    control = guest.control()
    try:
        channel, _ = control.exec(new_id(), command("echo", "back"))
    except VmmError:
        return None
    out, _, code = collect(control, channel)
    return out, code


def cut_connection(shim: int, path: str) -> None:
    """Shut down the shim's accepted connection, by a copy of its descriptor (pidfd_getfd(2))."""
    import ctypes
    import socket

    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(shim)
    for name in os.listdir(f"/proc/{shim}/fd"):
        fd = libc.syscall(438, pidfd, int(name), 0)
        if fd < 0:
            continue
        try:
            copy = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            continue
        with copy:
            connected = not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if connected and copy.getsockname() == path:
                copy.shutdown(socket.SHUT_RDWR)
    os.close(pidfd)


ATTACK = """
import os, socket, sys, time
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(uid, uid, uid)
print("go", flush=True)
end, taken = time.monotonic() + 20, 0
while time.monotonic() < end and not os.path.exists(path + ".done"):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        try:
            s.connect(path)
            taken += 1
            s.send(b"\\0VMMSYNC" + b"x" * 16)
            if data := s.recv(1 << 16):
                print("heard", data[:100], flush=True)
        except OSError:
            time.sleep(0.002)
print("taken", bool(taken), flush=True)
"""


@pytest.mark.parametrize("uid", [0, 12346], ids=["of QEMU's user", "of QEMU's group"])
def test_only_the_emulator_is_talked_to(guest: GuestLab, uid: int) -> None:
    """Who connects to the channel before QEMU, again and again, learns and stops nothing."""
    for directory in (guest.path, *guest.path.parents):
        if directory.stat().st_uid == os.geteuid() and not directory.stat().st_mode & 1:
            directory.chmod(directory.stat().st_mode | 0o011)
    guest.spawn("sh", "-c", "echo up; sleep 60")
    path = guest.path / "channel"
    argv = [sys.executable, "-I", "-S", "-c", ATTACK, str(path), str(uid)]
    attacker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert attacker.stdout
    assert attacker.stdout.readline() == "go\n"
    control = guest.control()
    control.attach()
    control.start()
    assert guest.status()["pid"] == guest.machine()
    frame = control.next_frame()
    assert frame and frame.payload == b"up\n"
    Path(f"{path}.done").touch()
    assert attacker.communicate(timeout=20)[0] == "taken True\n"
    guest.control().stop(9, 100)
    assert guest.ended()["exit_code"] == 137


def test_a_guest_without_its_files_is_ended(guest: GuestLab) -> None:
    """What reads them would wait for ever when virtiofsd is gone."""
    with subprocess.Popen(["sleep", "100"]) as virtiofsd:
        (guest.path / "needs").write_text(str(virtiofsd.pid))
        guest.start("sleep", "60")
        time.sleep(0.7)
        assert guest.status()["status"] == "running"
        virtiofsd.kill()
    state = guest.ended()
    assert state["exit_code"] == 137 and "virtiofsd ended" in state["error"], state
    assert guest.calls() == ["start", "destroy"]


def test_a_guest_that_ends_with_its_files_has_its_own_exit(guest: GuestLab) -> None:
    with subprocess.Popen(["sleep", "100"]) as virtiofsd:
        (guest.path / "needs").write_text(str(virtiofsd.pid))
        control = guest.start("sh", "-c", "sleep 0.5; exit 3")
        time.sleep(0.3)
        virtiofsd.kill()
        assert collect(control)[2] == 3
    state = guest.ended()
    assert (state["exit_code"], state["error"]) == (3, "")
    assert guest.calls() == ["start"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_guest_that_was_taken_over_is_ended_without_its_files(guest: GuestLab, when: str) -> None:
    with subprocess.Popen(["sleep", "100"]) as virtiofsd:
        (guest.path / "needs").write_text(str(virtiofsd.pid))
        guest.start("sleep", "60")
        shim = guest.status()["shim_pid"]
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: not alive(shim))
        if when == "before":
            virtiofsd.kill()
            virtiofsd.wait()
        guest.adopt = True
        guest.spawn("ignored")
        if when == "after":
            eventually(lambda: attempt(guest))
            time.sleep(0.7)
            assert guest.status()["status"] == "running"
            virtiofsd.kill()
    state = guest.ended()
    assert state["exit_code"] == 137 and "virtiofsd ended" in state["error"], state
    assert (state["needs"], guest.calls()) == (0, ["start", "destroy"])
