"""The device list of cgroup2, enforced by this kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.native.launching import Case, own_name
from vmm.backends.linux.device_program import program
from vmm.backends.linux.devices import DEFAULT_RULES, Rule
from vmm.model.launch import Op, op

FULL = (1, 7)
WITHOUT_FULL = tuple(rule for rule in DEFAULT_RULES if rule[1:3] != FULL)
LOOK = (
    "true </dev/full && echo reads; true >>/dev/full && echo writes; true </dev/zero && echo else"
)


@pytest.fixture
def group(case: Case) -> Path:
    """A group of the workload's own in the cgroup2 hierarchy."""
    mount = next(
        Path(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    )
    path = mount / "vmm-testdev" / own_name("d")
    case.host = [op("cgroup.make", str(path)), op("cgroup.join", str(path))]
    return path


def limit(group: Path, *rules: Rule) -> Op:
    return op("cgroup.devices", str(group), program(rules), "")


def test_only_what_is_listed_can_be_opened(case: Case, group: Path) -> None:
    case.host.append(limit(group, *WITHOUT_FULL))
    refused = case.sh(LOOK)
    assert refused.err.count("/dev/full: Operation not permitted") == 2, refused
    assert refused.out == "else\n"
    case.host.append(limit(group, *WITHOUT_FULL, Rule("c", *FULL, "rm")))
    assert case.sh(LOOK).out == "reads\nelse\n", "the later list is in place of the first"
    case.host.append(limit(group, *DEFAULT_RULES))
    assert case.sh(LOOK).out == "reads\nwrites\nelse\n"
    assert not group.parent.exists()


def test_exec_is_limited_alike(case: Case, group: Path) -> None:
    case.host.append(limit(group, *WITHOUT_FULL))
    result = case.exec(op("env", *case.env), op("exec", "cat", "/dev/full"))
    assert result.code == 1
    assert "'/dev/full': Operation not permitted" in result.err


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (b"", "not whole instructions"),
        (b"1234567", "not whole instructions"),
        (program(())[:-8], "does not take the device program"),
        (b"\xff" * 16, "does not take the device program"),
    ],
)
def test_broken_programs_are_refused(case: Case, group: Path, code: bytes, says: str) -> None:
    case.host.append(op("cgroup.devices", str(group), code, ""))
    result = case.run("true")
    assert result.code == 125
    assert f"cgroup.devices {str(group)[:70]}:" in result.err and says in result.err
    assert not group.parent.exists()


def test_a_directory_that_is_no_cgroup_is_refused(case: Case, tmp_path: Path) -> None:
    case.host = [op("cgroup.devices", str(tmp_path), program(DEFAULT_RULES), "")]
    result = case.run("true")
    assert result.code == 125
    assert "cannot limit the devices of the cgroup" in result.err
