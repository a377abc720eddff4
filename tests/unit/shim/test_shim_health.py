"""Probes of the health check, above both drivers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import Lab, alive, collect, command, eventually
from vmm.control import Control
from vmm.model.ids import new_id
from vmm.model.launch import Op, op

KINDS = ("container", "guest")


@pytest.fixture
def either(request: pytest.FixtureRequest, programs: Path) -> Lab:
    """A process of this kernel, or one that the first process of real guests keeps."""
    if request.param == "container":
        lab = request.getfixturevalue("lab")
        assert isinstance(lab, Lab)
        return lab
    guest = request.getfixturevalue("guest")
    assert isinstance(guest, GuestLab)
    guest.mode = str(programs / "vmm-init")
    return guest


def health(
    lab: Lab,
    *argv: str,
    interval: int = 40,
    timeout: int = 5000,
    start_period: int = 0,
    start_interval: int = 40,
    retries: int = 3,
) -> tuple[Op]:
    times = (interval, timeout, start_period, start_interval)
    log = str(lab.path / "health.jsonl")
    return (op("health", log, *times, retries, f"{timeout}ms", command(*argv)),)


def results(lab: Lab) -> list[dict[str, Any]]:
    path = lab.path / "health.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def changes(lab: Lab) -> list[str]:
    """The states as events told them."""
    actions = [event["Action"].partition(": ") for event in lab.events()]
    return [state for name, _, state in actions if name == "health_status"]


def becomes(lab: Lab, state: str) -> dict[str, Any]:
    eventually(lambda: lab.state().get("health") == state)
    return lab.state()


def touch(control: Control, path: str) -> None:
    channel, _ = control.exec(new_id(), command("touch", path))
    assert collect(control, channel)[2] == 0


@pytest.mark.parametrize("either", KINDS, indirect=True)
def test_states_events_and_log(either: Lab) -> None:
    probe = ("sh", "-c", "echo looked; echo twice >&2; test -e /tmp/ok")
    control = either.start("sleep", "60", shim=health(either, *probe))
    assert becomes(either, "starting")["failing_streak"] == 0
    assert becomes(either, "unhealthy")["failing_streak"] >= 3
    touch(control, "/tmp/ok")
    assert becomes(either, "healthy")["failing_streak"] == 0
    eventually(lambda: [r["exit_code"] for r in results(either)] == [0] * 5)
    last = results(either)
    assert all(sorted(r["output"].split()) == ["looked", "twice"] for r in last)
    assert all(r["start"] < r["end"] for r in last)
    assert all(b["start"] - a["end"] > 30_000_000 for a, b in pairwise(last))
    eventually(lambda: changes(either) == ["unhealthy", "healthy"])
    assert len(list((either.path / "exec").iterdir())) == 1  # ours
    assert [e["Action"] for e in either.events() if "looked" in e["Action"]] == []
    control.stop(9, 0)
    eventually(lambda: either.state()["status"] == "exited")
    assert either.state()["health"] == "unhealthy"
    eventually(lambda: changes(either) == ["unhealthy", "healthy"])


@pytest.mark.parametrize("either", KINDS, indirect=True)
def test_one_that_takes_too_long_is_killed_with_what_it_started(either: Lab) -> None:
    long = str(10**6 + os.getpid())
    probe = ("sh", "-c", f"echo before; sleep {long} & sleep {long}; true")
    either.start("sleep", "60", shim=health(either, *probe, timeout=150, retries=1))
    becomes(either, "unhealthy")
    first = results(either)[0]
    said = (first["exit_code"], first["output"])
    assert said == (-1, "Health check exceeded timeout (150ms): before\n")
    assert 140_000_000 < first["end"] - first["start"] < 3_000_000_000
    eventually(lambda: len(results(either)) >= 4)
    assert sleeping(long) <= 4  # of one probe, and of one that is just ending


def sleeping(long: str) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += path.read_bytes() == f"sleep\0{long}\0".encode()
    return found


@pytest.mark.parametrize("either", KINDS, indirect=True)
def test_much_output_is_cut(either: Lab) -> None:
    probe = ("sh", "-c", "printf '\\377'; yes | head -c 300000")
    either.start("sleep", "60", shim=health(either, *probe))
    becomes(either, "healthy")
    output = results(either)[0]["output"]
    assert output == "\ufffd" + ("y\n" * 2048)[:4095] + "..."


@pytest.mark.parametrize("either", KINDS, indirect=True)
def test_a_probe_that_cannot_be_run(either: Lab) -> None:
    either.start("sleep", "60", shim=health(either, "no-such-program", retries=1))
    becomes(either, "unhealthy")
    first = results(either)[0]
    assert first["exit_code"] == -1
    assert "no-such-program" in first["output"]


def test_failures_do_not_count_until_the_start_period_is_over(lab: Lab) -> None:
    probe = ("sh", "-c", "test -e /tmp/ok && test ! -e /tmp/bad")
    slow = health(lab, *probe, interval=100, start_period=60000, start_interval=20, retries=1)
    control = lab.start("sleep", "60", shim=slow)
    eventually(lambda: len(results(lab)) == 5)
    assert (lab.state()["health"], lab.state()["failing_streak"]) == ("starting", 0)
    touch(control, "/tmp/ok")
    becomes(lab, "healthy")
    touch(control, "/tmp/bad")  # the first success ended the start period
    assert becomes(lab, "unhealthy")["failing_streak"] >= 1
    eventually(lambda: changes(lab) == ["healthy", "unhealthy"])


def test_a_paused_workload_is_not_probed(guest: GuestLab) -> None:
    control = guest.start("sleep", "60", shim=health(guest, "true"))
    becomes(guest, "healthy")
    control.pause()
    eventually(lambda: guest.state()["status"] == "paused")
    assert guest.state()["health"] == "unhealthy"
    before = results(guest)
    time.sleep(0.2)
    assert results(guest) == before
    control.unpause()
    becomes(guest, "healthy")
    eventually(lambda: changes(guest) == ["healthy", "healthy"])


def test_a_restart_begins_again(lab: Lab) -> None:
    shim = (op("restart", "always", 0), *health(lab, "sh", "-c", "test ! -e /tmp/bad"))
    control = lab.start("sleep", "60", shim=shim)
    becomes(lab, "healthy")
    before = lab.state()
    os.kill(before["pid"], signal.SIGKILL)
    eventually(lambda: lab.state()["restart_count"] == 1 and lab.state()["status"] == "running")
    becomes(lab, "healthy")
    eventually(lambda: changes(lab) == ["healthy", "healthy"])
    control.stop(9, 0)


def test_a_new_shim_goes_on_probing(guest: GuestLab) -> None:
    shim = health(guest, "true")
    guest.start("sleep", "60", shim=shim)
    becomes(guest, "healthy")
    eventually(lambda: len(results(guest)) == 5)
    os.kill(guest.status()["shim_pid"], signal.SIGKILL)
    eventually(lambda: not alive(guest.state()["shim_pid"]))
    seen = results(guest)
    assert guest.state()["health"] == "healthy"
    guest.adopt = True
    guest.spawn("ignored", wait=False, shim=shim)
    eventually(lambda: len(results(guest)) == 5 and results(guest)[0]["start"] > seen[-1]["start"])
    assert guest.state()["health"] == "healthy"
    eventually(lambda: changes(guest) == ["healthy"])
    guest.control().stop(9, 0)


def test_between_probes_the_shim_sleeps(lab: Lab) -> None:
    lab.start("sleep", "60", shim=health(lab, "true", interval=100_000))
    status = Path(f"/proc/{lab.status()['shim_pid']}/status")
    time.sleep(1.3)  # it gives scratch memory back after a second
    before = wakings(status)
    time.sleep(0.5)
    assert wakings(status) == before
    assert lab.state()["health"] == "starting"


def wakings(status: Path) -> str:
    return status.read_text().partition("voluntary_ctxt_switches:")[2].split()[0]


def test_without_a_health_check_there_is_nothing(lab: Lab) -> None:
    lab.start("sleep", "60")
    assert (lab.state()["health"], results(lab)) == ("", [])
