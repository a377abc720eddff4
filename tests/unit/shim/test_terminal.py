"""The pump between local descriptors and a shim, in a process of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

from tests.unit.shim.shimlab import Lab, command, eventually
from vmm.model.ids import new_id

PROGRAM = """
import sys
from vmm.control import Control
from vmm.control.terminal import pump
path, tty, proxy, start = sys.argv[1], *(a == "1" for a in sys.argv[2:])
control = Control.connect(path)
control.attach(stdin=True)
control.expect_exit()
if start:
    control.start()
code = pump(control, stdin_fd=0, tty=tty, proxy_signals=proxy)
print(f"[{code}]", file=sys.stderr, flush=True)
sys.exit(0 if code is None else code)
"""
REPO = Path(__file__).parents[3]


def client(
    lab: Lab, *, tty: bool = False, proxy: bool = False, start: bool = True, **options: Any
) -> subprocess.Popen[bytes]:
    flags = [str(int(x)) for x in (tty, proxy, start)]
    argv = [sys.executable, "-c", PROGRAM, str(lab.run / "ctl.sock"), *flags]
    return subprocess.Popen(argv, cwd=REPO, **options)


def read_until(fd: int, wanted: bytes, seconds: float = 8) -> bytes:
    data, end = b"", time.monotonic() + seconds
    os.set_blocking(fd, False)
    while wanted not in data:
        assert time.monotonic() < end, f"{wanted!r} did not come; so far {data!r}"
        try:
            data += os.read(fd, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    return data


def test_streams_exit_code_and_end_of_stdin(lab: Lab) -> None:
    lab.spawn("sh", "-c", "cat; echo err >&2; exit 3", stdin=True, once=True)
    pipe = subprocess.PIPE
    process = client(lab, stdin=pipe, stdout=pipe, stderr=pipe)
    data = os.urandom(300000)
    out, err = process.communicate(data, timeout=20)
    assert (out, err, process.returncode) == (data, b"err\n[3]\n", 3)


def test_a_slow_local_reader_loses_nothing(lab: Lab) -> None:
    lab.spawn("head", "-c", "5000000", "/dev/zero", log=("none",))
    process = client(lab, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    time.sleep(0.7)
    assert len(process.communicate(timeout=20)[0]) == 5000000


def test_a_non_blocking_standard_output(lab: Lab) -> None:
    lab.spawn("head", "-c", "1000000", "/dev/zero", log=("none",))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = client(lab, stdin=subprocess.DEVNULL, stdout=writer)
    os.close(writer)
    time.sleep(0.3)
    with open(reader, "rb") as file:
        assert len(file.read()) == 1000000
    assert process.wait(10) == 0


def test_the_reader_of_the_output_leaves(lab: Lab) -> None:
    lab.spawn("yes", log=("none",))
    process = client(lab, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(10)
    process.stdout.close()
    assert b"BrokenPipeError" in process.communicate(timeout=10)[1]
    assert lab.status()["status"] == "running"


def test_signals_are_passed_on_even_behind_a_full_stdin(lab: Lab) -> None:
    script = "trap 'exit 6' INT; echo up; while :; do sleep 0.02; done"
    lab.spawn("sh", "-c", script, stdin=True, once=True)
    zero = os.open("/dev/zero", os.O_RDONLY)
    process = client(lab, proxy=True, stdin=zero, stdout=subprocess.PIPE)
    os.close(zero)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 6
    process.stdout.close()


def terminal(lab: Lab, *argv: str) -> tuple[int, list[Any], subprocess.Popen[bytes]]:
    """A client on a terminal of 22 rows and 77 columns; its master, its former settings."""
    lab.spawn(*argv, tty=True, stdin=True)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 22, 77, 0, 0))
    former = termios.tcgetattr(slave)
    process = client(lab, tty=True, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    return master, former, process


def test_a_terminal_has_its_size_and_follows_it(lab: Lab) -> None:
    script = "read x; stty size; read x; stty size; exit 4"
    master, former, process = terminal(lab, "sh", "-c", script)
    eventually(lambda: termios.tcgetattr(master)[3] != former[3])
    os.write(master, b"\n")
    assert b"22 77" in read_until(master, b"22 77")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 99, 0, 0))
    process.send_signal(signal.SIGWINCH)
    time.sleep(0.2)
    os.write(master, b"\n")
    assert b"40 99" in read_until(master, b"[4]")
    assert process.wait(10) == 4
    assert termios.tcgetattr(master) == former
    os.close(master)


def test_detach_keys_leave_the_workload_running(lab: Lab) -> None:
    master, former, process = terminal(lab, "sh", "-c", "echo up; cat")
    read_until(master, b"up")
    os.write(master, b"x\x10\x11")
    read_until(master, b"[None]")
    assert process.wait(10) == 0
    assert termios.tcgetattr(master) == former
    assert lab.status()["status"] == "running"
    os.close(master)


def test_a_killed_client_restores_the_terminal(lab: Lab) -> None:
    master, former, process = terminal(lab, "sh", "-c", "echo up; cat")
    read_until(master, b"up")
    assert termios.tcgetattr(master) != former
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert termios.tcgetattr(master) == former
    os.close(master)


def test_a_lost_shim_is_told_and_the_terminal_restored(lab: Lab) -> None:
    master, former, process = terminal(lab, "sh", "-c", "echo up; cat")
    read_until(master, b"up")
    os.kill(lab.status()["shim_pid"], signal.SIGKILL)
    read_until(master, b"ShimLost")
    assert process.wait(10) == 1
    assert termios.tcgetattr(master) == former
    os.close(master)


def test_an_exec_is_pumped_on_its_own_channel(lab: Lab) -> None:
    from vmm.control.terminal import pump

    control = lab.start("sh", "-c", "while :; do echo noise; sleep 0.01; done")
    channel, _ = control.exec(new_id(), command("sh", "-c", "echo mine; exit 2"))
    reader, writer = os.pipe()
    assert pump(control, channel=channel, stdout_fd=writer, stderr_fd=writer) == 2
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"mine\n"
