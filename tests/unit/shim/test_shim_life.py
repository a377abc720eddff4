"""A workload's life under the shim: start, end, stop, restart, and what is recorded of it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import Lab, alive, collect, eventually, read_until
from vmm.control import Exit
from vmm.control import frames as f
from vmm.model.errors import LaunchError, ShimLost
from vmm.model.launch import op
from vmm.model.state import State


def test_output_exit_code_and_state(lab: Lab) -> None:
    control = lab.start("sh", "-c", "echo out; echo err >&2; exit 7")
    assert collect(control) == (b"out\n", b"err\n", 7)
    assert control.wait_closed()
    state = lab.state()
    assert set(state) == set(State.__struct_fields__)
    assert (state["status"], state["exit_code"], state["pid"]) == ("exited", 7, 0)
    assert 0 < state["created"] <= state["started"] <= state["finished"] <= time.time_ns()
    assert state["boot_id"] == "this-boot"
    assert not (lab.run / "ctl.sock").exists()


def test_running_state_names_the_process(lab: Lab) -> None:
    lab.spawn("sleep", "60")
    pid = lab.control().start()
    state = lab.state()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert (state["status"], state["pid"], state["pid_start"]) == ("running", pid, int(stat[19]))
    assert (lab.run / "ctl.sock").stat().st_mode & 0o777 == 0o600
    assert alive(state["shim_pid"])


def test_start_without_being_asked(lab: Lab) -> None:
    lab.spawn("sleep", "60", wait=False)
    eventually(lambda: lab.status()["status"] == "running")


def test_a_failed_start_stays_created_with_code_127(lab: Lab) -> None:
    lab.spawn("nope")
    control = lab.control()
    with pytest.raises(LaunchError) as caught:
        control.start()
    assert caught.value.exit_code == 127
    assert "nope" in caught.value.message
    assert control.wait_closed()
    state = lab.state()
    assert (state["status"], state["exit_code"], state["started"]) == ("created", 127, 0)
    assert "nope" in state["error"]


def test_a_plan_it_cannot_follow_is_reported(lab: Lab) -> None:
    with pytest.raises(LaunchError) as caught:
        lab.spawn("true", shim=(op("colour", "blue"),))
    assert "colour" in caught.value.message
    assert caught.value.exit_code == 125


def test_a_second_shim_is_refused(lab: Lab) -> None:
    lab.start("sleep", "60")
    with pytest.raises(LaunchError, match="another shim"):
        lab.spawn("true")
    assert lab.status()["status"] == "running"


def test_stop_obeyed(lab: Lab) -> None:
    control = lab.start("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    lab.control().stop(signal.SIGTERM, 10000)
    assert control.wait_closed()
    state = lab.state()
    assert (state["exit_code"], state["manual_stop"]) == (5, True)
    actions = [e["Action"] for e in lab.events()]
    assert actions == ["start", "kill", "die", "stop"]
    die = lab.events()[2]["Actor"]["Attributes"]
    assert die == {"name": "lab", "exitCode": "5"}


def test_stop_kills_after_the_grace_period(lab: Lab) -> None:
    control = lab.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    began = time.monotonic()
    lab.control().stop(signal.SIGTERM, 300)
    assert 0.3 <= time.monotonic() - began < 3
    assert eventually(lab.state)["exit_code"] == 137
    assert lab.state()["signal"] == 9


def test_manual_stop_is_on_disk_before_the_end(lab: Lab) -> None:
    control = lab.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    other = lab.control()
    other.send(f.STOP, f.encode_args(15, -1))
    eventually(lambda: lab.state()["manual_stop"])
    assert lab.state()["status"] == "running"
    lab.control().signal(9)


def test_a_signal_reaches_the_process(lab: Lab) -> None:
    control = lab.start("sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    control.signal(signal.SIGUSR1)
    assert collect(control)[2] == 9


def test_sigterm_to_the_shim_stops_the_workload_without_marking_it(lab: Lab) -> None:
    control = lab.start("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done")
    read_until(control, b"up")
    shim = lab.status()["shim_pid"]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1):
        os.kill(shim, number)
    assert lab.status()["status"] == "running"
    os.kill(shim, signal.SIGTERM)
    assert control.wait_closed()
    assert (lab.state()["exit_code"], lab.state()["manual_stop"]) == (5, False)


def test_killing_the_shim_kills_the_workload(lab: Lab) -> None:
    lab.spawn("sleep", "60")
    control = lab.control()
    pid = control.start()
    os.kill(lab.status()["shim_pid"], signal.SIGKILL)
    eventually(lambda: not alive(pid))
    with pytest.raises(ShimLost):
        control.status()
    lab.spawn("true")  # the socket left behind is no hindrance
    assert lab.control().start() > 0


def test_restart_on_failure_counts_and_gives_up(lab: Lab) -> None:
    lab.spawn("sh", "-c", "echo run; exit 4", shim=(op("restart", "on-failure", 2),))
    control = lab.control()
    control.attach()
    control.start()
    assert lab.control().wait_next() == Exit(4, 0, False)
    control.expect_exit()
    out, _, code = collect(control)
    assert (out, code) == (b"run\n" * 3, 4)
    assert lab.state()["restart_count"] == 2
    deaths = [e["timeNano"] for e in lab.events() if e["Action"] == "die"]
    starts = [e["timeNano"] for e in lab.events() if e["Action"] == "start"]
    pauses = [(s - d) / 1e6 for d, s in zip(deaths, starts[1:], strict=False)]
    assert pauses[0] >= 99
    assert pauses[1] >= 199


def test_a_manual_stop_ends_restarting(lab: Lab) -> None:
    lab.spawn("false", shim=(op("restart", "always", 0),))
    control = lab.control()
    control.start()
    eventually(lambda: lab.status()["status"] == "restarting")
    lab.control().stop(15, 1000)
    assert control.wait_closed()
    assert (lab.state()["status"], lab.state()["manual_stop"]) == ("exited", True)


def test_a_policy_does_not_outlive_a_manual_kill(lab: Lab) -> None:
    control = lab.start("sleep", "60", shim=(op("restart", "always", 0),))
    control.signal(signal.SIGKILL, manual=True)
    assert collect(control)[2] == 137
    assert (lab.state()["manual_stop"], lab.state()["restart_count"]) == (True, 0)


def test_it_is_restarted_after_a_kill_that_was_not_asked_for(lab: Lab) -> None:
    lab.start("sleep", "60", shim=(op("restart", "unless-stopped", 0),))
    first = lab.state()["pid"]
    os.kill(first, signal.SIGKILL)
    eventually(lambda: lab.state()["pid"] not in (0, first))
    assert lab.state()["restart_count"] == 1


def test_the_next_run_keeps_what_the_last_one_left(lab: Lab) -> None:
    collect(lab.start("sh", "-c", "exit 3"))
    eventually(lambda: not (lab.run / "ctl.sock").exists())
    former = lab.state()
    lab.spawn("nope")
    assert lab.status()["status"] == "exited"
    with pytest.raises(LaunchError):
        lab.control().start()
    state = eventually(lambda: lab.state()["error"] and lab.state())
    assert (state["created"], state["finished"]) == (former["created"], former["finished"])


def test_the_reaper_runs_when_nobody_promised(lab: Lab) -> None:
    mark = lab.path / "reaped"
    lab.start("true", shim=(op("reaper", "/bin/busybox", "touch", str(mark)),))
    eventually(mark.exists)


def test_a_promise_keeps_the_reaper_away(lab: Lab) -> None:
    mark = lab.path / "reaped"
    reaper = (op("reaper", "/bin/busybox", "touch", str(mark)),)
    control = lab.start("true", promise=True, shim=reaper)
    assert collect(control)[2] == 0
    assert control.wait_closed()
    time.sleep(0.3)
    assert not mark.exists()


def test_a_broken_promise_calls_the_reaper(lab: Lab) -> None:
    mark = lab.path / "reaped"
    reaper = (op("reaper", "/bin/busybox", "touch", str(mark)),)
    control = lab.start("sleep", "0.3", promise=True, shim=reaper)
    control.close()
    eventually(mark.exists)


def test_a_promise_with_the_answer_unread_is_broken(lab: Lab) -> None:
    mark = lab.path / "reaped"
    reaper = (op("reaper", "/bin/busybox", "touch", str(mark)),)
    lab.spawn("true", shim=reaper)
    control = lab.control()
    control.expect_exit(promise=True)
    control.send(f.START)
    eventually(lambda: not (lab.run / "ctl.sock").exists())
    control.close()
    eventually(mark.exists)


def test_a_helper_lives_with_the_workload_and_comes_back(lab: Lab) -> None:
    ours, theirs = socket.socketpair()
    script = f"echo $$ >&{theirs.fileno()}; exec sleep 60"
    shim = (
        op("helper", "/bin/busybox", "sh", "-c", script),
        op("helper-fds", theirs.fileno()),
    )
    control = lab.start("sleep", "60", shim=shim, fds=[theirs.fileno()])
    theirs.close()
    first = int(ours.recv(100))
    os.kill(first, signal.SIGKILL)
    ours.settimeout(5)
    second = int(ours.recv(100))
    assert second != first
    lab.control().stop(9, 0)
    assert control.wait_closed()
    assert not alive(second)
    assert ours.recv(10) == b""


def test_the_workload_does_not_inherit_the_helpers_socket(lab: Lab) -> None:
    ours, theirs = socket.socketpair()
    shim = (op("helper", "/bin/busybox", "sleep", "60"), op("helper-fds", theirs.fileno()))
    control = lab.start("sh", "-c", "echo /proc/self/fd/*", shim=shim, fds=[theirs.fileno()])
    out = collect(control)[0].decode().split()
    assert {name.rpartition("/")[2] for name in out} <= {"0", "1", "2", "3"}  # 3: the listing
    ours.close()
    theirs.close()


def test_an_idle_shim_is_small(lab: Lab) -> None:
    control = lab.start("sh", "-c", "seq 20000; exec sleep 60")
    read_until(control, b"\n20000\n")
    lab.idle_memory_is(92)


def test_an_idle_shim_of_a_guest_is_small(guest: GuestLab) -> None:
    guest.padding = 10000  # as real plans have
    control = guest.start("sh", "-c", "seq 20000; exec sleep 60")
    read_until(control, b"\n20000\n")
    list(control.top())
    guest.idle_memory_is(104)
    control.stop(9, 0)


def test_a_signal_just_before_the_start_is_passed_on(lab: Lab) -> None:
    lab.spawn("sleep", "60")
    lab.control().signal(signal.SIGKILL, manual=True)
    control = lab.control()
    control.expect_exit()
    control.start()
    assert collect(control)[2] == 137
    eventually(lambda: lab.state()["status"] == "exited")
    assert lab.state()["manual_stop"] is True
