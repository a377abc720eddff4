"""Further processes in a running workload."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.unit.shim.shimlab import Lab, collect, command, eventually, read_until
from vmm.control import frames as f
from vmm.model.errors import LaunchError, VmmError
from vmm.model.ids import new_id


def exec_state(lab: Lab, exec_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.path / "exec" / f"{exec_id}.json").read_text())
    return found


def test_output_and_exit_code(lab: Lab) -> None:
    control, exec_id = lab.start("sleep", "60"), new_id()
    channel, pid = control.exec(exec_id, command("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert pid > 0
    assert collect(control, channel) == (b"out\n", b"err\n", 3)
    state = exec_state(lab, exec_id)
    assert (state["id"], state["running"], state["pid"], state["exit_code"]) == (
        exec_id,
        False,
        0,
        3,
    )
    assert 0 < state["started"] <= state["finished"]
    actions = [e["Action"] for e in lab.events()]
    assert actions[1:] == [
        "exec_create: sh -c echo out; echo err >&2; exit 3",
        "exec_start: sh -c echo out; echo err >&2; exit 3",
        "exec_die",
    ]


def test_it_runs_inside(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    channel, _ = control.exec(
        new_id(), command("sh", "-c", "cat /proc/1/cmdline; echo /proc/[0-9]*")
    )
    out = collect(control, channel)[0]
    assert out.startswith(b"sleep\x0060\x00/proc/1 ")
    assert len(out.split()) <= 3


def test_many_at_once_over_one_connection(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    wanted = {}
    for n in range(20):
        channel, _ = control.exec(new_id(), command("sh", "-c", f"echo {n}; exit {n}"))
        wanted[channel] = n
    seen: dict[int, list[Any]] = {channel: [] for channel in wanted}
    while sum(f.EXIT in got for got in seen.values()) < 20:
        frame = control.next_frame(10)
        assert frame is not None
        seen[frame.channel] += [frame.type, frame.payload]
    for channel, n in wanted.items():
        assert seen[channel][1] == b"%d\n" % n
        assert f.decode_args(seen[channel][3])[0] == b"%d" % n


def test_stdin_with_its_end(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    channel, _ = control.exec(new_id(), command("cat"), stdin=True)
    data = b"0123456789" * 100000

    def write() -> None:
        control.write_stdin(data, channel)
        control.write_stdin(b"", channel)

    writer = threading.Thread(target=write)
    writer.start()
    assert collect(control, channel) == (data, b"", 0)
    writer.join()


def test_terminal_and_resize(lab: Lab) -> None:
    control, exec_id = lab.start("sleep", "60"), new_id()
    channel, _ = control.exec(
        exec_id, command("sh", "-c", "read x; stty size"), tty=True, stdin=True
    )
    lab.control().resize(12, 34, exec_id=exec_id)
    control.write_stdin(b"\n", channel)
    assert collect(control, channel)[0] == b"\r\n12 34\r\n"


def test_not_found_is_127(lab: Lab) -> None:
    control, exec_id = lab.start("sleep", "60"), new_id()
    with pytest.raises(LaunchError) as caught:
        control.exec(exec_id, command("nope"))
    assert caught.value.exit_code == 127
    assert exec_state(lab, exec_id)["exit_code"] == 127
    assert lab.status()["status"] == "running"


def test_detached(lab: Lab) -> None:
    control, exec_id = lab.start("sleep", "60"), new_id()
    control.exec(exec_id, command("sh", "-c", "echo lost; exit 6"), detach=True)
    eventually(lambda: not exec_state(lab, exec_id)["running"])
    assert exec_state(lab, exec_id)["exit_code"] == 6


def test_signal_and_attach_again(lab: Lab) -> None:
    control, exec_id = lab.start("sleep", "60"), new_id()
    script = "trap 'exit 8' USR1; while :; do echo tick; sleep 0.02; done"
    channel, _ = control.exec(exec_id, command("sh", "-c", script))
    read_until(control, b"tick", channel)
    other = lab.control()
    again = other.exec_attach(exec_id)
    read_until(other, b"tick", again)
    other.exec_signal(exec_id, 10)
    assert collect(other, again)[2] == 8
    with pytest.raises(VmmError, match="no such exec"):
        other.exec_signal(exec_id, 10)


def test_a_background_process_does_not_hold_the_exec(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    channel, _ = control.exec(new_id(), command("sh", "-c", "sleep 50 & echo started"))
    assert collect(control, channel, timeout=3) == (b"started\n", b"", 0)


def test_the_client_leaving_does_not_end_it(lab: Lab) -> None:
    lab.start("sleep", "60")
    exec_id = new_id()
    with lab.control() as client:
        client.exec(exec_id, command("sh", "-c", "sleep 0.2; exit 4"))
    eventually(lambda: not exec_state(lab, exec_id)["running"])
    assert exec_state(lab, exec_id)["exit_code"] == 4


def test_the_end_of_the_workload_ends_its_execs(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    channel, _ = control.exec(new_id(), command("sleep", "50"))
    lab.control().stop(9, 0)
    assert collect(control, channel)[2] == 137
    assert control.wait_closed()


@pytest.mark.parametrize("bad", ["", "../../x", "a/b", "x" * 65])
def test_an_id_that_is_no_file_name_is_refused(lab: Lab, bad: str) -> None:
    control = lab.start("sleep", "60")
    with pytest.raises(VmmError, match="invalid exec id"):
        control.exec(bad, command("true"))


def test_only_in_a_running_workload(lab: Lab) -> None:
    lab.spawn("true")
    with pytest.raises(VmmError, match="not running"):
        lab.control().exec(new_id(), command("true"))
