"""Workloads on cgroup2 alone, on a real kernel that has nothing else: one boot of User-mode Linux.

The guest also has one CPU, no cpuset controller and no packet filter, so that what vmm
finds missing there is refused for a reason.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.lab import uml
from tests.lab.boots import Boot, Result

REPO = Path(__file__).parents[2]
#: Seconds for all of it on a loaded machine; a quiet one takes a third.
DEADLINE = 150

pytestmark = pytest.mark.timeout(DEADLINE + 20)

#: ``vmm`` as a user calls it, and what is asked for often.
PRELUDE = f"""
cd {REPO}
vmm() {{ "$PYTHON" -m vmm --root "$SCRATCH/root" "$@"; }}
quick() {{ vmm run --rm --network none "$@"; }}
started() {{ echo /sys/fs/cgroup/vmm-*/"$(vmm run -d --network none "$@")"; }}
members() {{ cat "$1"/cgroup.procs 2>/dev/null | wc -l; }}
empty() {{ [ "$(members "$1")" = 0 ]; }}
await() {{ for try in $(seq 80); do "$@" && return; sleep 0.1; done; false; }}
state() {{ vmm inspect --format '{{{{json .State}}}}' "$1"; }}
"""

SCRIPTS = {
    "backends": "vmm backends",
    "import": 'vmm image import "$SHARED/busybox.tar" busybox',
    "out of memory": """
        vmm run --name greedy --network none --memory 16m busybox tail /dev/zero; echo $?
        state greedy
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
            mkdir x; echo 5 >pids.max; echo 0 >cgroup.procs; exit 7'
    """,
    "life": """
        group=$(started --name life busybox sh -c 'sleep 1000 & exec sleep 1000'); members "$group"
        vmm exec life sh -c 'cat /proc/self/cgroup; exit 9'; echo $?
        echo 1 >"$group/cgroup.freeze"; await grep 'frozen 1' "$group/cgroup.events"
        vmm kill life; members "$group"
    """,
    "shim lost": """
        vmm start life; group=$(echo /sys/fs/cgroup/vmm-*/*/); members "$group"
        kill -9 $(pidof vmm-shim); await empty "$group"; members "$group"; state life
    """,
    "paused": """
        group=$(started --name still --memory 32m busybox sh -c 'echo old >/file; sleep 1000')
        await vmm exec still cat /file; vmm pause still; grep frozen "$group/cgroup.events"
        vmm cp still:/file "$SCRATCH/file"; echo new >>"$SCRATCH/file"
        vmm cp "$SCRATCH/file" still:/; grep frozen "$group/cgroup.events"
        vmm unpause still; vmm exec still cat /file; vmm rm -f still
    """,
    "groups of its own": """
        group=$(started --name manager --privileged --restart on-failure:1 busybox sh -c '
            leaf=/sys/fs/cgroup/first; [ -e /again ] && leaf=/sys/fs/cgroup/second
            mkdir $leaf && echo 1 >$leaf/cgroup.procs &&
            echo +pids >/sys/fs/cgroup/cgroup.subtree_control || exit 3
            [ -e /again ] && exec sleep 1000; : >/again; exit 1')
        await [ -d "$group/second" ]; await grep -q pids "$group/cgroup.subtree_control"
        find "$group" -mindepth 1 -type d -printf '%f\\n'
        cat "$group/cgroup.subtree_control"; vmm exec manager cat /proc/self/cgroup
    """,
    "devices": """
        read='dd if=/dev/kmsg of=/dev/null bs=8k count=1'
        write='echo written >/dev/kmsg'
        node='mknod /dev/kmsg c 1 11'
        quick busybox sh -c "$node && echo made; $read && echo read 1; mknod /b b 8 0; cat /b
            echo >/dev/null && head -c1 /dev/zero | wc -c"
        quick --device /dev/kmsg:/dev/kmsg:r busybox sh -c "$read && echo read 2; $write; true"
        quick --device /dev/kmsg busybox sh -c "$write && echo wrote 3"
        quick --privileged busybox sh -c "$write && echo wrote 4"
    """,
    "cpuset": "quick --cpuset-cpus 0 busybox true",
    "bridge": "vmm run --rm busybox true",
    "nested": """
        mkdir /sys/fs/cgroup/outer && echo $$ >/sys/fs/cgroup/outer/cgroup.procs
        export PYTHON SCRATCH; unshare -Cm sh -c '
            umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
            vmm() { "$PYTHON" -m vmm --root "$SCRATCH/root" "$@"; }
            vmm run --rm --network none --memory 16m busybox echo limited
            vmm run --rm --network none busybox cat /proc/self/cgroup'
        echo $$ >/sys/fs/cgroup/cgroup.procs; rmdir /sys/fs/cgroup/outer
    """,
    "left": """
        vmm rm -f greedy life manager
        find /sys/fs/cgroup -mindepth 1 -type d; pidof vmm-shim; vmm ps -aq
        ls -A "$SCRATCH/root/workloads" "$SCRATCH/root/journal"
        grep "$SCRATCH/root" /proc/self/mountinfo
    """,
}


def busybox_tar(path: Path) -> None:
    """A root file system of busybox and links to what the scripts use."""
    commands = ("sh", "cat", "grep", "find", "mkdir", "sleep", "tail", "head", "dd", "mknod", "wc")
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
def guest(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    directory = tmp_path_factory.mktemp("uml")
    (directory / "shared").mkdir()
    busybox_tar(directory / "shared/busybox.tar")
    scripts = {name: PRELUDE + script for name, script in SCRIPTS.items()}
    return uml.run(scripts, directory, timeout=DEADLINE)


@pytest.fixture
def results(guest: Boot) -> dict[str, Result]:
    for name, result in guest.results.items():
        assert result.code != 124, f"{name} did not end: {result}"
        assert "fault of vmm" not in result.err, f"{name}: {result.err}"
    assert list(guest.results) == list(SCRIPTS), guest.console
    return guest.results


def test_capabilities_are_probed(results: dict[str, Result]) -> None:
    found = {line.split()[1]: line for line in results["backends"].out.splitlines()}
    rows = [" ".join(line.split()) for line in results["backends"].out.splitlines()]
    assert "container container yes" in rows, found
    for controller in ("cpu", "memory", "pids"):
        assert f"container cgroup {controller} yes cgroup v2" in rows
    assert "container cgroup cpuset no no --cpuset-cpus" in rows
    assert "container device list yes BPF program on cgroup v2" in rows


def test_running_out_of_memory_is_seen(results: dict[str, Result]) -> None:
    code, state = results["out of memory"].out.splitlines()
    assert code == "137"
    assert '"OOMKilled":true' in state and '"ExitCode":137' in state


def test_limits_are_set_and_hold(results: dict[str, Result]) -> None:
    lines = results["limits"].out.splitlines()
    assert lines[:5] == [str(32 << 20), str(16 << 20), "20000 100000", "174", "9"]
    assert int(lines[5].split()[1]) >= 1, "a fifth of a CPU is less than a busy loop takes"
    assert "can't fork: Resource temporarily unavailable" in results["limits"].err


def test_its_own_group_alone_shows_and_read_only(results: dict[str, Result]) -> None:
    found = results["inside"]
    own, mount, *rest = found.out.splitlines()
    assert own == "0::/"
    assert mount.split()[3:5] == ["/", "/sys/fs/cgroup"]
    assert mount.split()[5].startswith("ro,") and "vmm-" not in mount
    assert rest[0] == ".", "no group of others"
    assert "1" in rest[1:]
    assert found.err.count("Read-only file system") == 3
    assert found.code == 7


def test_frozen_processes_are_killed(results: dict[str, Result]) -> None:
    lines = results["life"].out.splitlines()
    assert lines == ["2", "0::/", "9", "frozen 1", "life", "0"]


def test_a_lost_shim_takes_its_workload_along(results: dict[str, Result]) -> None:
    name, before, after, state = results["shim lost"].out.splitlines()
    assert (name, before, after) == ("life", "2", "0")
    assert '"ExitCode":137' in state and '"Error":"shim lost"' in state


def test_files_are_copied_while_the_group_is_frozen(results: dict[str, Result]) -> None:
    lines = results["paused"].out.splitlines()
    frozen, thawed = ["still", "frozen 1", "frozen 1"], ["still", "old", "new", "still"]
    assert lines == ["old", *frozen, *thawed], results["paused"].err


def test_a_workload_may_have_groups_of_its_own(results: dict[str, Result]) -> None:
    """Its group then takes no process any more: neither a restart nor an exec may fail for it."""
    assert results["groups of its own"].out.split() == ["second", "pids", "0::/second"]


def test_devices_are_those_allowed(results: dict[str, Result]) -> None:
    found = results["devices"]
    assert found.out.splitlines() == ["made", "1", "read 2", "wrote 3", "wrote 4"], found.err
    for refused in ("can't open '/dev/kmsg'", "can't open '/b'", "can't create /dev/kmsg"):
        assert f"{refused}: Operation not permitted" in found.err


def test_what_this_kernel_lacks_is_refused(results: dict[str, Result]) -> None:
    cpuset, bridge = results["cpuset"], results["bridge"]
    assert (cpuset.code, bridge.code) == (125, 125)
    assert "--cpuset-cpus" in cpuset.err and "no writable cgroup controller 'cpuset'" in cpuset.err
    assert "bridge" in bridge.err and "--network none" in bridge.err


def test_inside_a_container_limits_need_delegation(results: dict[str, Result]) -> None:
    """A group with processes in it hands on no controllers; plain workloads run all the same."""
    nested = results["nested"]
    assert "--memory" in nested.err and "no writable cgroup controller 'memory'" in nested.err
    assert nested.out.split() == ["0::/"], nested.err


def test_nothing_is_left(results: dict[str, Result]) -> None:
    left = results["left"]
    lines = [line for line in left.out.splitlines() if line and not line.endswith(":")]
    assert lines == ["greedy", "life", "manager"], left
