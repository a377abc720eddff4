"""The shim keeps a guest as it keeps a container: same requests, same answers, same files."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import alive, collect, command, eventually, read_until
from vmm.control import frames as f
from vmm.control.client import Control
from vmm.model.errors import LaunchError, VmmError
from vmm.model.ids import new_id
from vmm.model.launch import encode_ops, op


def wait_closed(control: Control) -> None:
    assert control.wait_closed(15)


def test_a_run_from_start_to_end(guest: GuestLab) -> None:
    control = guest.start("sh", "-c", "echo out; echo err >&2; sleep 0.2; exit 3")
    running = guest.status()
    assert (running["status"], running["pid"]) == ("running", guest.machine())
    assert running["pid_start"] > 0
    mode = os.stat(guest.path / "channel")
    assert (stat.S_IMODE(mode.st_mode), mode.st_gid) == (0o660, 12345)
    assert collect(control) == (b"out\n", b"err\n", 3)
    wait_closed(control)
    state = guest.state()
    assert (state["status"], state["exit_code"], state["error"]) == ("exited", 3, "")
    assert [e["log"] for e in guest.log()] == ["out\n", "err\n"]
    assert [e["Action"] for e in guest.events()] == ["start", "die"]
    assert guest.calls() == ["start"]
    eventually(lambda: not alive(guest.machine()))
    assert not (guest.path / "channel").exists()


def test_much_output_arrives_whole_and_in_order(guest: GuestLab) -> None:
    control = guest.start("sh", "-c", "seq 300000; seq 5 >&2")
    time.sleep(0.5)  # the client does not read: the guest runs out of credit
    out, err, code = collect(control)
    same = out == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert same
    assert (err, code) == (b"1\n2\n3\n4\n5\n", 0)


def test_standard_input_and_its_end(guest: GuestLab) -> None:
    data = os.urandom(500) * 4000
    guest.spawn("cat", stdin=True, once=True)
    control, typing = guest.control(), guest.control()
    control.attach()
    control.expect_exit()
    typing.attach(stdin=True, stdout=False, stderr=False)
    typing.write_stdin(b"typed before; ")
    typing.status()
    control.start()

    def write() -> None:
        typing.write_stdin(data)
        typing.write_stdin(b"")

    writer = threading.Thread(target=write)
    writer.start()
    out, err, code = collect(control)
    writer.join()
    same = out == b"typed before; " + data
    assert (same, err, code) == (True, b"", 0)


def test_a_terminal_has_the_size_it_is_given(guest: GuestLab) -> None:
    guest.spawn("sh", "-c", "stty -echo; echo go; read x; stty size", tty=True, stdin=True)
    control = guest.control()
    control.attach(stdin=True)
    control.expect_exit()
    control.resize(20, 60)
    control.start()
    read_until(control, b"go")
    for columns in range(61, 90):
        control.resize(33, columns)
    time.sleep(0.2)
    control.write_stdin(b"\n")
    assert b"33 89" in collect(control)[0]


def test_execs(guest: GuestLab) -> None:
    control = guest.start("sleep", "60")
    exec_id = new_id()
    channel, pid = control.exec(exec_id, command("sh", "-c", "cat; exit 6"), stdin=True)
    assert pid > 0
    other, _ = control.exec(new_id(), command("sh", "-c", "echo two >&2"))
    assert collect(control, other) == (b"", b"two\n", 0)
    control.write_stdin(b"hello", channel)
    control.write_stdin(b"", channel)
    assert collect(control, channel) == (b"hello", b"", 6)
    with pytest.raises(LaunchError) as caught:
        control.exec(new_id(), command("nope"))
    assert caught.value.exit_code == 127
    assert caught.value.message == "nope: No such file or directory [2J"
    third, _ = control.exec(exec_id, command("sleep", "50"))
    control.exec_signal(exec_id, 9)
    assert collect(control, third)[2] == 137
    actions = [e["Action"].split(":")[0] for e in guest.events()]
    assert actions.count("exec_start") == 4
    assert actions.count("exec_die") == 3


def test_a_file_stream_makes_no_events(guest: GuestLab) -> None:
    control = guest.start("sleep", "60")
    before = len(guest.events())
    ops = encode_ops((op("archive.get", "/x", "0"), op("exec", "echo", "stream")))
    channel, _ = control.exec(new_id(), ops)
    assert collect(control, channel)[0] == b"stream\n"
    assert len(guest.events()) == before


def test_questions_and_files(guest: GuestLab) -> None:
    control = guest.start("sleep", "60")
    assert control.stats() == {"memory": 4096, "cpu_ns": 77}
    assert control.top() == [b"1\t0\t0\tS\t?[31mred", b"2\t1"]
    control.file("/etc/hosts", b"127.0.0.1\0x")
    assert (guest.path / "channel.file").read_bytes() == b"/etc/hosts|127.0.0.1\0x"
    with pytest.raises(VmmError, match="hypervisor"):
        control.update("", 0, encode_ops((op("cgroup.write", "/x", "1"),)))


def test_pause_and_stop_of_a_paused_one(guest: GuestLab) -> None:
    control = guest.start("sh", "-c", "trap 'exit 4' TERM; while :; do echo tick; sleep 0.05; done")
    read_until(control, b"tick")
    control.pause()
    assert guest.state()["status"] == "paused"
    for refused in (control.pause, control.stats, lambda: control.exec(new_id(), command("true"))):
        with pytest.raises(VmmError, match="paused"):
            refused()
    control.unpause()
    assert guest.state()["status"] == "running"
    control.pause()
    guest.control().stop(15, 8000)
    assert guest.ended()["exit_code"] == 4
    actions = [e["Action"] for e in guest.events()]
    assert actions == ["start", "pause", "unpause", "pause", "kill", "unpause", "die", "stop"]


def test_stop_kills_after_its_time(guest: GuestLab) -> None:
    control = guest.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    guest.control().stop(15, 300)
    state = guest.ended()
    assert (state["exit_code"], state["signal"], state["manual_stop"]) == (137, 9, True)
    assert guest.calls() == ["start"], "it ended inside, and powered off"


def test_a_guest_that_outlives_its_kill_is_destroyed(guest: GuestLab) -> None:
    guest.mode = "immortal"
    control = guest.start("sleep", "60")
    control.stop(15, 0)
    state = guest.ended()
    assert (state["exit_code"], guest.calls()) == (137, ["start", "destroy"])
    assert state["error"] == "guest did not end its workload when it was killed"
    eventually(lambda: not alive(guest.machine()))


def test_it_boots_again_as_the_policy_says(guest: GuestLab) -> None:
    script = f"echo x >> {guest.path}/runs; exit 5"
    control = guest.start("sh", "-c", script, shim=(op("restart", "on-failure", 2),))
    assert collect(control)[2] == 5
    wait_closed(control)
    assert guest.state()["restart_count"] == 2
    assert (guest.path / "runs").read_text() == "x\n" * 3
    assert guest.calls() == ["start"] * 3


def test_a_policy_changes_while_it_runs(guest: GuestLab) -> None:
    control = guest.start("sleep", "60", shim=(op("restart", "always", 0),))
    control.update("no", 0)
    control.signal(9)
    assert guest.ended()["exit_code"] == 137


def test_the_report_tells_of_a_start_without_waiting_for_it(guest: GuestLab) -> None:
    plan = guest.path / "plan"
    plan.write_bytes(guest.plan("sleep", "60", wait=False).encode())
    reader, writer = os.pipe()
    with os.fdopen(reader) as report:
        program = str(guest.programs / "vmm-shim")
        subprocess.run([program, str(plan), str(writer)], pass_fds=(writer,), check=True)
        os.close(writer)
        assert report.readline() == "ready\n"
        assert report.read() == f"running {guest.machine()}\n"
    guest.control().stop(15, 5000)


def test_a_new_shim_takes_over(guest: GuestLab) -> None:
    control = guest.start("sh", "-c", "while ! test -e stop; do sleep 0.05; done; echo end; exit 9")
    before = guest.status()
    control.exec(new_id(), command("sleep", "77"))
    os.kill(before["shim_pid"], signal.SIGKILL)
    eventually(lambda: not alive(before["shim_pid"]))
    assert alive(guest.machine())
    guest.adopt = True
    guest.spawn("ignored", wait=False)
    after = guest.status()
    for key in ("started", "pid", "pid_start", "status", "created"):
        assert after[key] == before[key]
    again = guest.control()
    eventually(lambda: attempt(guest.control()))
    channel, _ = again.exec(new_id(), command("sh", "-c", "pwd"))
    cwd = collect(again, channel)[0].strip().decode()
    again.attach()
    again.expect_exit()
    try:
        Path(cwd, "stop").touch()
        assert collect(again) == (b"end\n", b"", 9)
    finally:
        Path(cwd, "stop").unlink()
    wait_closed(again)
    assert guest.calls() == ["start"]


@pytest.mark.parametrize("how", ["exited", "gone"])
def test_a_new_shim_learns_of_the_end(guest: GuestLab, how: str) -> None:
    control = guest.start("sleep", "60")
    read = guest.status()
    os.kill(read["shim_pid"], signal.SIGKILL)
    assert control.wait_closed()
    eventually(lambda: not alive(read["shim_pid"]))
    if how == "gone":
        os.killpg(guest.machine(), signal.SIGKILL)
        eventually(lambda: not alive(guest.machine()))
    else:
        children = Path(f"/proc/{guest.machine()}/task/{guest.machine()}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGTERM)
    guest.adopt = True
    guest.spawn("ignored")
    state = guest.ended()
    wanted = (143, "") if how == "exited" else (137, "guest ended: it crashed")
    assert (state["exit_code"], state["error"]) == wanted
    assert state["started"] == read["started"]


def test_a_paused_guest_is_taken_over_paused(guest: GuestLab) -> None:
    guest.start("sleep", "60").pause()
    os.kill(guest.status()["shim_pid"], signal.SIGKILL)
    time.sleep(0.1)
    guest.adopt = True
    guest.spawn("ignored")
    control = guest.control()
    assert guest.status()["status"] == "paused"
    control.unpause()
    eventually(lambda: guest.status()["status"] == "running")
    channel, _ = eventually(lambda: attempt(control))
    assert collect(control, channel)[0] == b"back\n"


def attempt(control: Control) -> tuple[int, int] | None:
    try:
        return control.exec(new_id(), command("echo", "back"))
    except VmmError:
        return None


def test_with_the_first_process_of_real_guests(guest: GuestLab, programs: Path) -> None:
    """vmm-init over the same channel, in namespaces of this kernel in place of a machine."""
    guest.mode = str(programs / "vmm-init")
    control = guest.start("sh", "-c", "echo $$; seq 100000; read x; exit $x", stdin=True)
    channel, _ = control.exec(new_id(), command("sh", "-c", "cat; exit 7"), stdin=True)
    control.write_stdin(b"x" * 300000, channel)
    control.write_stdin(b"", channel)
    streams = exit_codes(control, {0: b"5\n", channel: b""})
    assert streams == {channel: (300000, 7), 0: (2 + 588895, 5)}
    wait_closed(control)
    assert guest.state()["exit_code"] == 5
    assert guest.calls() == ["start"]


def exit_codes(control: Control, last_words: dict[int, bytes]) -> dict[int, tuple[int, int]]:
    """Bytes and exit code of each channel; ``last_words`` are typed when all others have ended."""
    sizes = dict.fromkeys(last_words, 0)
    ended: dict[int, tuple[int, int]] = {}
    while len(ended) < len(sizes):
        if len(ended) == len(sizes) - 1:
            control.write_stdin(last_words[0])
        frame = control.next_frame(20)
        assert frame is not None
        if frame.type == f.STDOUT:
            sizes[frame.channel] += len(frame.payload)
        elif frame.type == f.EXIT:
            code = int(f.decode_args(frame.payload)[0])
            ended[frame.channel] = (sizes[frame.channel], code)
    return ended
