"""Reading /proc: recorded and written texts, and this host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.backends.container import ContainerBackend, facts
from vmm.backends.linux import mountinfo
from vmm.model.backend import CgroupHierarchy

#: The example of proc_pid_mountinfo(5), and one with an escaped space and no optional field.
MANUAL = """\
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 0:40 / /media/my\\040disk ro,nosuid - tmpfs tmpfs rw,size=4k
garbage
38 35
"""

#: A systemd host on cgroup2 alone (systemd.io/CGROUP_DELEGATION, "unified").
PURE_V2 = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
PURE_V2_OWN = "0::/user.slice/user-0.slice/session-1.scope\n"

#: A systemd host with v1 alone ("legacy"): joined controllers, net_prio mounted read-only.
PURE_V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/net_cls,net_prio ro,nosuid - cgroup cgroup rw,net_cls,net_prio
35 30 0:29 / /elsewhere/memory rw,nosuid shared:11 - cgroup cgroup rw,memory
"""
PURE_V1_OWN = """\
4:memory:/user.slice
3:cpu,cpuacct:/user.slice
1:name=systemd:/user.slice/user-0.slice/session-1.scope
"""

#: Recorded on a Firecracker guest without systemd: v1 beside a cgroup2 that has hugetlb alone.
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = "4:memory:/process_api/bd81757e\n1:cpu:/\n0::/\n"

#: Inside a container of v1 without a cgroup namespace: the mount shows a part of the hierarchy.
NESTED = "33 30 0:29 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def group(version: int, names: str, at: str, own: str = "/") -> CgroupHierarchy:
    controllers = tuple(names.split())
    return CgroupHierarchy(version=version, controllers=controllers, mountpoint=at, own=own)


def test_mountinfo_of_the_manual() -> None:
    first, second = mountinfo.parse_mountinfo(MANUAL)
    assert (first.root, first.mountpoint, first.type) == ("/mnt1", "/mnt2", "ext3")
    assert first.options == ("rw", "noatime")
    assert second.mountpoint == "/media/my disk"


def test_cgroup2_alone() -> None:
    shown = {"/sys/fs/cgroup": "cpuset cpu io memory pids\n"}
    own = "/user.slice/user-0.slice/session-1.scope"
    expected = group(2, "cpuset cpu io memory pids", "/sys/fs/cgroup", own)
    assert mountinfo.hierarchies(PURE_V2, PURE_V2_OWN, shown) == (expected,)


def test_v1_alone_without_read_only_and_second_mounts() -> None:
    session = "/user.slice/user-0.slice/session-1.scope"
    assert mountinfo.hierarchies(PURE_V1, PURE_V1_OWN, {}) == (
        group(1, "name=systemd", "/sys/fs/cgroup/systemd", session),
        group(1, "cpu cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/user.slice"),
        group(1, "memory", "/sys/fs/cgroup/memory", "/user.slice"),
    )


def test_both_versions_at_once() -> None:
    shown = {"/sys/fs/cgroup/unified": "hugetlb\n"}
    assert mountinfo.hierarchies(HYBRID, HYBRID_OWN, shown) == (
        group(1, "cpu", "/sys/fs/cgroup/cpu"),
        group(1, "memory", "/sys/fs/cgroup/memory", "/process_api/bd81757e"),
        group(2, "hugetlb", "/sys/fs/cgroup/unified"),
    )


@pytest.mark.parametrize(
    ("path", "own"), [("/docker/ab", "/"), ("/docker/ab/x", "/x"), ("/docker/abc", "/")]
)
def test_own_group_is_relative_to_the_mount(path: str, own: str) -> None:
    [found] = mountinfo.hierarchies(NESTED, f"4:memory:{path}\n", {})
    assert found.own == own


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"cgroup.procs": "1\n"}, "cpu memory pids"),
        ({"cgroup.type": "domain\n", "cgroup.procs": ""}, "cpu memory pids"),
        ({"cgroup.type": "domain\n", "cgroup.procs": "1\n"}, "cpu"),
    ],
    ids=["root", "emptied", "occupied"],
)
def test_controllers_that_cgroup2_hands_on(
    tmp_path: Path, files: dict[str, str], usable: str
) -> None:
    """A group with processes, other than the root, cannot begin to (admin-guide/cgroup-v2.rst)."""
    shown = {"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "cpu\n"}
    for name, text in {**shown, **files}.items():
        (tmp_path / name).write_text(text)
    assert facts.controllers_v2(str(tmp_path)).split() == usable.split()


V2 = group(2, "memory", "/sys/fs/cgroup")


def test_device_programs_are_asked_for_on_cgroup2_alone() -> None:
    assert facts.device_programs((group(1, "devices", "/x"), V2)) is None
    assert facts.device_programs(()) is None


def test_without_privileges_the_reason_is_given() -> None:
    """Root of a new user namespace may not load programs for cgroups."""
    script = "from tests.unit.container.test_container_facts import *\n"
    script += "print(facts.device_programs((V2,)))"
    done = subprocess.run(
        ["unshare", "-Ur", sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("bpf(2) is not permitted")


def test_limits_and_masks() -> None:
    text = "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  20000  files\n"
    text += "Max core file size  0  unlimited  bytes\n"
    assert mountinfo.parse_limits(text) == {"nofile": 20000, "core": -1}
    assert mountinfo.parse_status_mask("CapEff:\t0a\nCapBnd:\t000001fffeffffff\n", "CapBnd") == (
        0x1FFFEFFFFFF
    )
    assert mountinfo.parse_status_mask("", "CapBnd") == 0


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "3-1", "0,,1", "0-999999999", "¹"])
def test_lists_of_cpus_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        mountinfo.parse_cpu_list(text)


def test_lists_of_cpus() -> None:
    assert mountinfo.parse_cpu_list("0-2,5\n") == {0, 1, 2, 5}


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-13-amd64", (6, 1)), ("5.10", (5, 10)), ("odd", (0, 0))]
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert facts.kernel_version(release) == version


def test_this_host() -> None:
    found = ContainerBackend().facts()
    assert found.cpus == os.cpu_count()
    assert found.kernel > (3, 0)
    assert f"CapBnd:\t{found.cap_bounding:016x}" in Path("/proc/self/status").read_text()
    for hierarchy in found.cgroups:
        assert Path(hierarchy.mountpoint + hierarchy.own).is_dir()


def test_probe_gives_a_reason_for_whatever_is_missing() -> None:
    found = ContainerBackend().probe()
    assert found[0].name == "container"
    assert all(capability.reason for capability in found if not capability.available)
