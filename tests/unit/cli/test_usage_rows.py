"""``vmm stats``: rows from two samples; and sizes as Docker writes them."""

from __future__ import annotations

import pytest

from vmm.control.frames import numbers_of
from vmm.engine.statistics import Numbers, Reading, cpu_percent, row
from vmm.model import human

ID = "ab" * 32
BEFORE = {"cpu_ns": 10**9, "system_ns": 100 * 10**9, "cpus": 4}
NOW = BEFORE | {
    "cpu_ns": 15 * 10**8, "system_ns": 104 * 10**9, "memory": 1536 << 10, "memory_limit": 64 << 20,
    "pids": 3, "pids_limit": 100, "net_rx": 1050, "net_tx": 0, "blk_read": 12_300_000,
    "blk_write": 999,
}  # fmt: skip


def reading(now: Numbers | None, before: Numbers | None = None) -> Reading:
    return Reading(ID, "web", "we", now, before or {})


def test_a_row() -> None:
    assert row(reading(NOW, BEFORE)) == {
        "Container": "we",
        "ID": ID[:12],
        "Name": "web",
        "CPUPerc": "50.00%",
        "MemUsage": "1.5MiB / 64MiB",
        "MemPerc": "2.34%",
        "NetIO": "1.05kB / 0B",
        "BlockIO": "12.3MB / 999B",
        "PIDs": "3",
    }
    assert row(reading(NOW), truncate=False)["ID"] == ID


def test_one_that_does_not_run_uses_nothing() -> None:
    shown = row(reading({}))
    assert shown["CPUPerc"] == "0.00%"
    assert shown["MemUsage"] == "0B / 0B"
    assert shown["PIDs"] == "0"


def test_one_that_does_not_answer_is_not_known() -> None:
    shown = row(reading(None))
    assert shown["Name"] == "web"
    assert {shown[k] for k in ("CPUPerc", "MemUsage", "MemPerc", "NetIO", "PIDs")} == {"--"}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE | {"cpu_ns": 3 * 10**9, "system_ns": 108 * 10**9}, 100.0),
        (BEFORE | {"cpu_ns": 0, "system_ns": 108 * 10**9}, 0.0),  # it was started again
        (BEFORE | {"cpu_ns": 3 * 10**9}, 0.0),
        (BEFORE | {"cpu_ns": 3 * 10**9, "system_ns": 1}, 0.0),
        ({}, 0.0),
    ],
)
def test_cpu_is_the_share_of_the_time_between(now: Numbers, expected: float) -> None:
    assert cpu_percent(BEFORE, now) == pytest.approx(expected)


def test_what_a_guest_invents_is_left_out() -> None:
    fields = [b"pids=3", b"memory=-1", b"cpus=x", b"net_rx=" + b"9" * 30, b"=", b"\xff=1", b"pids"]
    numbers = numbers_of(fields)
    assert numbers["pids"] == 3
    assert not {"memory", "cpus", "net_rx"} & set(numbers)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1 << 20, "1MiB"), (5_500_000, "5.245MiB"),
     (8_201_261_056, "7.638GiB"), (1 << 63, "8EiB")],
)  # fmt: skip
def test_binary_sizes(number: int, text: str) -> None:
    assert human.binary_size(number) == text
