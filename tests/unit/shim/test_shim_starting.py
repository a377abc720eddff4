"""While a guest boots: whoever stops it, leaves it or joins it then."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import Lab, alive, eventually
from tests.unit.shim.test_terminal import read_until
from vmm.control.client import Control
from vmm.model.errors import LaunchError, VmmError
from vmm.model.launch import op

REPO = Path(__file__).parents[3]
#: A session as ``vmm run`` has it; what becomes of the start's own things is the last line.
PROGRAM = """
import contextlib, sys
from vmm.control import Control
from vmm.control.starting import Starting
from vmm.control.terminal import pump

@contextlib.contextmanager
def taken():
    try:
        yield
    except BaseException:
        print("undone", file=sys.stderr)
        raise
    print("kept", file=sys.stderr)

path, tty = sys.argv[1], sys.argv[2] == "1"
control = Control.connect(path)
control.attach(stdin=True)
control.expect_exit()
with contextlib.ExitStack() as stack:
    stack.enter_context(taken())
    starting = Starting(Control.connect(path), stack.pop_all())
code = pump(control, stdin_fd=0, tty=tty, proxy_signals=not tty, starting=starting)
print(f"[{code}]", file=sys.stderr, flush=True)
sys.exit(0 if code is None else code)
"""


def client(lab: Lab, *, tty: bool = False, **options: Any) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", PROGRAM, str(lab.run / "ctl.sock"), str(int(tty))]
    return subprocess.Popen(argv, cwd=REPO, **options)


def booting(guest: GuestLab, *argv: str, mode: str = "slow", **options: Any) -> None:
    guest.mode = mode
    guest.spawn(*argv, **options)


def boots(guest: GuestLab) -> None:
    """The boot has begun."""
    eventually(lambda: (guest.path / "pid").exists())


def finish_boot(guest: GuestLab) -> None:
    (guest.path / "channel.go").touch()


def start(control: Control, outcome: list[object]) -> None:
    try:
        outcome.append(control.start())
    except VmmError as error:
        outcome.append(error)


def ended_by(guest: GuestLab, how: str) -> None:
    control = guest.control()
    if how == "kill":
        control.signal(9, manual=True)
    elif how == "int":
        control.signal(2)
    else:
        control.stop(15, 10000 if how == "stop" else 0)


@pytest.mark.parametrize(
    "how, number, manual",
    [("stop", 15, True), ("stop at once", 9, True), ("kill", 9, True), ("int", 2, False)],
)
def test_ended_while_it_boots(guest: GuestLab, how: str, number: int, manual: bool) -> None:
    booting(guest, "true", shim=(op("restart", "always", 0),))
    outcome: list[object] = []
    starting = threading.Thread(target=start, args=(guest.control(), outcome))
    starting.start()
    boots(guest)
    with pytest.raises(VmmError, match="still being started"):
        guest.control().signal(signal.SIGUSR1)
    ended_by(guest, how)
    starting.join()
    (error,) = outcome
    assert isinstance(error, LaunchError) and error.exit_code == 128 + number
    eventually(lambda: not alive(guest.machine()))
    state = guest.ended()
    assert (state["exit_code"], state["signal"]) == (128 + number, number)
    assert state["manual_stop"] is manual
    assert state["error"] == "the workload was stopped while it was being started"
    assert state["started"] > 0
    assert [e["Action"] for e in guest.events()] == ["kill", "die", "stop"]


def test_what_failed_before_the_stop_is_the_reason(guest: GuestLab) -> None:
    """The plan was refused already; the machine is only still on its way out."""
    booting(guest, "no-such-program", mode="stuck")
    outcome: list[object] = []
    starting = threading.Thread(target=start, args=(guest.control(), outcome))
    starting.start()
    boots(guest)
    finish_boot(guest)
    eventually(lambda: (guest.path / "channel.stuck").exists())
    guest.control().stop(15, 0)
    starting.join()
    (error,) = outcome
    assert isinstance(error, LaunchError) and error.exit_code == 127
    assert guest.state()["status"] == "created"


def test_a_second_start_is_answered_with_the_first(guest: GuestLab) -> None:
    booting(guest, "sleep", "60")
    first, second = guest.control(), guest.control()
    first.begin_start()
    boots(guest)
    first.close()
    second.begin_start()
    assert second.start_answer(0.2) is None
    finish_boot(guest)
    assert second.start_answer(10) == guest.machine()
    assert guest.control().start() == guest.machine()
    assert guest.calls() == ["start"]
    guest.control().stop(9, 0)


def on_terminal(guest: GuestLab, *argv: str) -> tuple[int, subprocess.Popen[bytes]]:
    """A client on a terminal, whose guest boots; the terminal's master."""
    booting(guest, *argv, tty=True, stdin=True)
    master, slave = pty.openpty()
    process = client(guest, tty=True, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    boots(guest)
    return master, process


def test_detach_keys_leave_the_boot_going_on(guest: GuestLab) -> None:
    master, process = on_terminal(guest, "sh", "-c", "read x; echo got $x")
    os.write(master, b"early\r\x10\x11")
    assert b"kept" in read_until(master, b"[None]")
    assert process.wait(10) == 0
    os.close(master)
    assert guest.state()["status"] == "created"
    finish_boot(guest)
    assert guest.ended()["exit_code"] == 0
    assert "got early" in "".join(line["log"] for line in guest.log())


def test_a_signal_ends_the_start_and_the_session(guest: GuestLab) -> None:
    booting(guest, "sleep", "60")
    pipe = subprocess.PIPE
    process = client(guest, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    boots(guest)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == (b"", b"kept\n[143]\n")
    assert guest.ended()["exit_code"] == 143


def test_a_killed_terminal_leaves_the_boot_going_on(guest: GuestLab) -> None:
    master, process = on_terminal(guest, "sh", "-c", "exit 7")
    process.send_signal(signal.SIGTERM)
    assert b"kept" in read_until(master, b"kept")
    assert process.wait(10) == -signal.SIGTERM
    os.close(master)
    finish_boot(guest)
    assert guest.ended()["exit_code"] == 7


def test_a_start_that_fails_ends_the_session_and_is_undone(guest: GuestLab) -> None:
    booting(guest, "no-such-program")
    finish_boot(guest)
    process = client(guest, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.communicate(timeout=15)[1]
    assert b"undone" in errors and b"LaunchError" in errors
    assert process.returncode == 1
    assert guest.state()["status"] == "created"


def test_a_signal_just_before_the_start_of_a_guest_ends_it(guest: GuestLab) -> None:
    """It came over another connection, and was quicker than the START that it is meant for."""
    booting(guest, "true")
    guest.control().signal(signal.SIGTERM)
    outcome: list[object] = []
    start(guest.control(), outcome)
    (error,) = outcome
    assert isinstance(error, LaunchError) and error.exit_code == 143
    assert guest.ended()["signal"] == 15
