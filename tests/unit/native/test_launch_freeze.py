"""Freezing, and changing limits, of running workloads (cgroup v1; for v2 see tests/lab)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.unit.native.launching import Case
from tests.unit.native.watching import groups, running
from vmm.model.launch import Op, op

pytestmark = pytest.mark.skipif(
    not Path("/sys/fs/cgroup/freezer").is_dir(), reason="no cgroup v1 freezer"
)
COUNTER = "i=0; (while :; do i=$((i+1)); echo $i >/count; done) & wait"


@pytest.fixture
def made(case: Case) -> dict[str, Path]:
    return groups(case)


def grows(path: Path, seconds: float = 5) -> bool:
    before = path.read_bytes()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.read_bytes() != before:
            return True
        time.sleep(0.01)
    return False


def test_frozen_and_thawed(case: Case, made: dict[str, Path]) -> None:
    with running(case, COUNTER) as launcher:
        count = case.base / "upper/count"
        while not count.exists():
            time.sleep(0.01)
        assert grows(count)
        for _ in range(3):
            launcher.ask("freeze")
            assert (made["freezer"] / "freezer.state").read_text() == "FROZEN\n"
            assert not grows(count, 0.2)
            launcher.ask("freeze")  # again is fine
            launcher.ask("thaw")
            assert grows(count)
        launcher.ask("thaw")


def test_a_frozen_workload_can_be_killed(case: Case, made: dict[str, Path]) -> None:
    with running(case, "sleep 1000 & sleep 1000") as launcher:
        while len(launcher.top()) < 2:
            time.sleep(0.01)
        launcher.ask("freeze")
        pids = [int(line[0]) for line in launcher.top()]
        assert len(pids) >= 2
        started = time.monotonic()
        launcher.ask("kill 9")
        while any(os.path.exists(f"/proc/{pid}/root/bin") for pid in pids):
            assert time.monotonic() - started < 5
            time.sleep(0.01)
        assert launcher.end() == 137
    assert not made["memory"].exists()


def test_a_frozen_workload_leaves_nothing(case: Case, made: dict[str, Path]) -> None:
    """The launcher ends with its workload frozen, in whatever order its groups go."""
    with running(case, "sleep 1000 & sleep 1001 & sleep 1002") as launcher:
        launcher.ask("freeze")
        started = time.monotonic()
        launcher.end()
        assert time.monotonic() - started < 1.5
    assert [path for path in made.values() if path.exists()] == []


def test_a_signal_waits_for_the_thaw(case: Case, made: dict[str, Path]) -> None:
    with running(case, "trap 'echo got >/got' USR1; while :; do sleep 0.01; done") as launcher:
        time.sleep(0.2)
        launcher.ask("freeze")
        launcher.ask("kill 10")
        time.sleep(0.1)
        assert not (case.base / "upper/got").exists()
        launcher.ask("thaw")
        end = time.monotonic() + 5
        while not (case.base / "upper/got").exists():
            assert time.monotonic() < end
            time.sleep(0.01)


def test_without_a_freezer(case: Case) -> None:
    refused = pytest.raises(RuntimeError, match="no cgroup that can be frozen")
    with running(case, "sleep 100") as launcher, refused:
        launcher.ask("freeze")


def test_a_group_that_is_gone(case: Case, made: dict[str, Path]) -> None:
    freeze = next(i for i, made_op in enumerate(case.host) if made_op.name == "cgroup.freeze")
    case.host[freeze] = op(
        "cgroup.freeze", str(made["freezer"]) + "x/freezer.state", "FROZEN", "THAWED"
    )
    refused = pytest.raises(RuntimeError, match=r"cannot freeze.*No such file")
    with running(case, "sleep 100") as launcher, refused:
        launcher.ask("freeze")


def test_limits_change(case: Case, made: dict[str, Path]) -> None:
    limit = made["memory"] / "memory.limit_in_bytes"
    swap = made["memory"] / "memory.memsw.limit_in_bytes"
    pids = made["pids"] / "pids.max"

    def limits(memory: int, both: int) -> list[Op]:
        ops = [op("cgroup.write", str(limit), memory)]
        return [*ops, op("cgroup.write", str(swap), both)] if swap.exists() else ops

    with running(case, "sleep 100") as launcher:
        for size in (
            64 << 20,
            32 << 20,
            128 << 20,
        ):  # down and up: either file may have to go first
            launcher.update(*limits(size, 2 * size))
            assert int(limit.read_text()) == size
            if swap.exists():
                assert int(swap.read_text()) == 2 * size
        launcher.update(op("cgroup.write", str(pids), 33), op("cgroup.try", str(pids), "banana"))
        assert pids.read_text() == "33\n"
        assert launcher.stats()["memory_limit"] == 128 << 20
        assert launcher.stats()["pids_limit"] == 33
        with pytest.raises(RuntimeError, match=r"cgroup.write .*banana.*Invalid argument"):
            launcher.update(op("cgroup.write", str(pids), "banana"))
        for wrong in (op("cgroup.make", "/x"), op("exec", "true"), op("cgroup.write", str(pids))):
            with pytest.raises(RuntimeError, match=wrong.name):
                launcher.update(wrong)
