"""Pausing, statistics, the process list and changes of a process of this kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shim.shimlab import Lab, collect, command, eventually, read_until
from vmm.control.client import Control
from vmm.model.errors import VmmError
from vmm.model.ids import new_id
from vmm.model.launch import LaunchPlan, Op, encode_ops, op

MOUNT = Path("/sys/fs/cgroup")
NAME = f"vmm-test-shim-{os.getpid()}"
V1 = (MOUNT / "freezer").is_dir()


def cgroup(name: str) -> list[Op]:
    """A cgroup that can be frozen, and counts."""
    if not V1:
        group = MOUNT / name
        frozen = op("cgroup.freeze", str(group / "cgroup.freeze"), 1, 0)
        return [*entered(group), frozen, op("stats", "cpu", str(group / "cpu.stat"))]
    freezer, cpu = MOUNT / "freezer" / name, MOUNT / "cpuacct" / name
    frozen = op("cgroup.freeze", str(freezer / "freezer.state"), "FROZEN", "THAWED")
    counted = op("stats", "cpuacct", str(cpu / "cpuacct.usage"))
    return [*entered(freezer), *entered(cpu)[:2], frozen, counted]


def entered(group: Path) -> list[Op]:
    return [
        op("cgroup.make", str(group)),
        op("cgroup.join", str(group)),
        op("cgroup.kill", str(group)),
    ]


class GroupLab(Lab):
    def plan(self, *argv: str, **options: object) -> LaunchPlan:
        plan = super().plan(*argv, **options)  # type: ignore[arg-type]
        return plan._replace(host=(*cgroup(NAME), *plan.host))


@pytest.fixture
def group(tmp_path: Path, programs: Path, root: Path) -> Iterator[GroupLab]:
    if os.geteuid():
        pytest.skip("not root")
    lab = GroupLab(tmp_path, programs, root)
    yield lab
    lab.close()
    for directory in (Path(o.args[0]) for o in cgroup(NAME) if o.name == "cgroup.make"):  # type: ignore[arg-type]
        if directory.exists():  # its shim was killed
            if (directory / "freezer.state").exists():
                (directory / "freezer.state").write_text("THAWED")
            eventually(lambda d=directory: not (d / "cgroup.procs").read_text())  # type: ignore[misc]
            directory.rmdir()


def ticks(control: Control, seconds: float) -> int:
    """Frames of output that come within a time."""
    end, count = time.monotonic() + seconds, 0
    while frame := control.next_frame(max(0.0, end - time.monotonic())):
        count += frame.payload.count(b"tick")
    return count


TICKING = "trap 'exit 4' TERM; while :; do echo tick; sleep 0.02; done"


def test_a_paused_workload_stands_still_and_goes_on(group: GroupLab) -> None:
    control = group.start("sh", "-c", TICKING)
    read_until(control, b"tick")
    other = group.control()
    other.pause()
    assert group.state()["status"] == group.status()["status"] == "paused"
    ticks(control, 0.1)
    assert ticks(control, 0.3) == 0
    for refused in (other.pause, lambda: other.exec(new_id(), command("true"))):
        with pytest.raises(VmmError, match="is paused"):
            refused()
    other.unpause()
    read_until(control, b"tick")
    assert group.state()["status"] == "running"
    with pytest.raises(VmmError, match="not paused"):
        other.unpause()
    assert [e["Action"] for e in group.events()] == ["start", "pause", "unpause"]


@pytest.mark.parametrize(
    ("signal", "timeout", "code"), [(15, 5000, 4), (10, 200, 137), (9, 0, 137)]
)
def test_a_paused_workload_can_be_stopped(
    group: GroupLab, signal: int, timeout: int, code: int
) -> None:
    script = "trap '' USR1; " + TICKING
    control = group.start("sh", "-c", script)
    read_until(control, b"tick")
    group.control().pause()
    began = time.monotonic()
    group.control().stop(signal, timeout)
    assert collect(control)[2] == code
    assert time.monotonic() - began < 3
    assert group.state()["status"] == "exited"


def test_a_killed_paused_workload_can_start_again(group: GroupLab) -> None:
    control = group.start("sh", "-c", TICKING, shim=(op("restart", "always", 0),))
    read_until(control, b"tick")
    other = group.control()
    for _ in range(2):
        other.pause()
        other.signal(9)
        eventually(lambda: group.status()["status"] == "running")
        ticks(control, 0)
        read_until(control, b"tick")
    assert group.status()["restart_count"] == 2


def test_numbers_and_processes(group: GroupLab) -> None:
    control = group.start("sh", "-c", "sleep 77 & echo up; while :; do :; done")
    read_until(control, b"up")
    other = group.control()
    eventually(lambda: other.stats()["cpu_ns"] > 10_000_000)
    lines = [line.split(b"\t") for line in other.top()]
    assert {line[0] for line in lines} >= {str(group.status()["pid"]).encode()}
    assert sorted(line[13] for line in lines)[1] == b"sleep 77"
    assert all(len(line) == 14 for line in lines)
    other.pause()
    assert len(other.top()) == 2, "one that stands still can be looked at"


def test_an_update_writes_and_changes_the_policy(group: GroupLab, tmp_path: Path) -> None:
    control = group.start("sh", "-c", TICKING)
    read_until(control, b"tick")
    file = tmp_path / "limit"
    file.write_text("before")
    other = group.control()
    with pytest.raises(VmmError, match="policy"):
        other.update("sometimes", 0)
    other.update("always", 0, encode_ops((op("cgroup.write", str(file), "123"),)))
    assert file.read_text().startswith("123")
    with pytest.raises(VmmError):
        other.update("no", 0, encode_ops((op("cgroup.make", str(file)),)))
    other.signal(9)
    eventually(lambda: group.status()["restart_count"] == 1)
    eventually(lambda: group.status()["status"] == "running")
    with pytest.raises(VmmError, match="shares the host's files"):
        other.file("/etc/hosts", b"x")


def test_before_the_start_there_is_nothing_to_ask(group: GroupLab) -> None:
    group.spawn("true")
    control = group.control()
    for ask in (control.pause, control.unpause, control.stats, control.top):
        with pytest.raises(VmmError, match="not running"):
            ask()
    control.update("always", 0)
