"""Workloads on cgroup2 alone, on a real kernel that has nothing else: one boot of User-mode Linux.

The guest also has one CPU, no cpuset controller and no packet filter, so that what vmm
finds missing there is refused for a reason.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.lab import uml

REPO = Path(__file__).parents[2]
#: Seconds for all of it on a loaded machine; a quiet one takes a third.
DEADLINE = 150

pytestmark = pytest.mark.timeout(DEADLINE + 20)

#: ``vmm`` as a user calls it, and the group of the instance's workload named $1.
PRELUDE = f"""
cd {REPO}
vmm() {{ "$PYTHON" -m vmm --root "$SCRATCH/root" "$@"; }}
quick() {{ vmm run --rm --network none "$@"; }}
group() {{ echo /sys/fs/cgroup/vmm-*/"$(vmm inspect --format '{{{{.Id}}}}' "$1")"; }}
alive() {{ cat "$1"/cgroup.procs 2>/dev/null | wc -l; }}
state() {{ vmm inspect --format '{{{{json .State}}}}' "$1"; }}
"""

SCRIPTS = {
    "backends": "vmm backends",
    "import": 'vmm image import "$SHARED/busybox.tar" busybox',
    "exit codes": """
        quick busybox sh -c 'exit 7'; echo $?
        quick busybox no-such-program; echo $?
        quick busybox /etc; echo $?
    """,
    "out of memory": """
        vmm run --name greedy --network none --memory 16m busybox tail /dev/zero; echo $?
        state greedy; vmm rm greedy
    """,
    "limits": """
        quick --memory 32m --memory-swap 48m --cpus 0.2 --cpu-shares 2048 --pids-limit 9 \\
            busybox sh -c 'cd /sys/fs/cgroup
                cat memory.max memory.swap.max cpu.max cpu.weight pids.max
                i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; grep nr_throttled cpu.stat
                for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 2 & done'
    """,
    "inside": """
        quick busybox sh -c 'cat /proc/self/cgroup; grep cgroup /proc/self/mountinfo
            cd /sys/fs/cgroup; find . -type d; cat cgroup.procs
            mkdir x; echo 5 >pids.max; echo 0 >cgroup.procs'
    """,
    "life": """
        vmm run -d --name life --network none busybox sh -c 'sleep 1000 & exec sleep 1000'
        vmm exec life sh -c 'cat /proc/self/cgroup; exit 9'; echo $?
        group=$(group life); alive "$group"
        vmm stop -t 0 life; ls "$group"; state life
        vmm start life; alive "$group"; vmm rm -f life
    """,
    "frozen": """
        vmm run -d --name frozen --network none busybox sh -c 'sleep 1000 & exec sleep 1000'
        group=$(group frozen); echo 1 >"$group/cgroup.freeze"; sleep 0.2
        grep frozen "$group/cgroup.events"
        vmm kill frozen; state frozen; vmm rm frozen
    """,
    "shim lost": """
        vmm run -d --name orphan --network none busybox sh -c 'trap "" TERM; sleep 1000'
        group=$(group orphan); kill -9 $(pidof vmm-shim); sleep 0.5
        alive "$group"; state orphan; vmm rm orphan
    """,
    "devices": """
        read='dd if=/dev/kmsg of=/dev/null bs=8k count=1'
        write='echo written >/dev/kmsg'
        node='mknod /dev/kmsg c 1 11'
        quick busybox sh -c "$node; $read" && echo read 1
        quick --device /dev/kmsg:/dev/kmsg:r busybox sh -c "$read && echo read 2; $write; true"
        quick --device /dev/kmsg busybox sh -c "$write && echo wrote 3"
        quick --privileged busybox sh -c "$write && echo wrote 4"
        quick --cap-drop MKNOD busybox sh -c "$node" || echo no node
        quick busybox sh -c 'echo >/dev/null && head -c1 /dev/zero | wc -c; mknod /b b 8 0; cat /b'
    """,
    "explain": """
        vmm create --name shown --network none --device /dev/kmsg:/dev/kmsg:rw busybox true
        vmm explain shown; vmm rm shown
    """,
    "cpuset": "quick --cpuset-cpus 0 busybox true",
    "bridge": "vmm run --rm busybox true",
    "left": """
        find /sys/fs/cgroup -mindepth 1 -type d; pidof vmm-shim; vmm ps -aq
        ls "$SCRATCH/root/workloads" "$SCRATCH/root/journal"
        grep -c "$SCRATCH/root" /proc/self/mountinfo
    """,
}


def busybox_tar(path: Path) -> None:
    """A root file system of busybox and links to what the scripts use."""
    commands = "sh cat ls grep find mkdir sleep tail head dd mknod wc echo true kill ps".split()
    with tarfile.open(path, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for command in commands:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        directory = tarfile.TarInfo("etc")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> uml.Boot:
    directory = tmp_path_factory.mktemp("uml")
    (directory / "shared").mkdir()
    busybox_tar(directory / "shared/busybox.tar")
    scripts = {name: PRELUDE + script for name, script in SCRIPTS.items()}
    return uml.run(scripts, directory, timeout=DEADLINE)


@pytest.fixture
def results(guest: uml.Boot) -> dict[str, uml.Result]:
    for name, result in guest.results.items():
        assert result.code != 124, f"{name} did not end: {result}"
        assert "fault of vmm" not in result.err, f"{name}: {result.err}"
    assert list(guest.results) == list(SCRIPTS), guest.console
    return guest.results


def test_capabilities_are_probed(results: dict[str, uml.Result]) -> None:
    found = {line.split()[1]: line for line in results["backends"].out.splitlines()}
    rows = [" ".join(line.split()) for line in results["backends"].out.splitlines()]
    assert "container container yes" in rows, found
    for controller in ("cpu", "memory", "pids"):
        assert f"container cgroup {controller} yes cgroup v2" in rows
    assert "container cgroup cpuset no no --cpuset-cpus" in rows
    assert "container device list yes BPF program on cgroup v2" in rows


def test_exit_codes(results: dict[str, uml.Result]) -> None:
    assert results["import"].code == 0, results["import"]
    assert results["exit codes"].out.split() == ["7", "127", "126"]
