"""An instance on a file system that is full: of bytes, or of inodes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.instance import Instance, until

QUIET = ("--network", "none")
#: Ends with 3 when it is asked to.
OBEDIENT = ("busybox", "sh", "-c", "trap 'exit 3' TERM; while :; do echo tick; sleep 0.1; done")
#: Takes all there is, again and again: bytes or inodes, whatever is left.
GREEDY = ("busybox", "sh", "-c", "while :; do i=$((i+1)); echo $i >/f$i; done 2>/dev/null")


#: What commands make and keep whether they succeed or not.
ALLOWED = ("cache", "layers/i", "volumes/.lock")


class Disk:
    """A tmpfs in a mount namespace of its own, and the instance on it."""

    def __init__(self, place: Path, namespace: str) -> None:
        place.mkdir()
        mount = f"mount -t tmpfs -o size=12m,nr_inodes=3k tmpfs {place}"
        script = f"{mount} && echo mounted && exec sleep 1000"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == "mounted\n"
        self.mount = place
        self.path = Path(f"/proc/{self._holder.pid}/root{place}")
        self.vmm = Instance(place / "root", namespace)
        self.vmm.enter.insert(1, f"--mount=/proc/{self._holder.pid}/ns/mnt")
        self.vmm.enter.append("--wdns=" + os.getcwd())
        self.root = self.path / "root"

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()

    def fill(self, what: str = "bytes", leave: int = 0) -> None:
        """Until nothing is left, or so many bytes."""
        filler = self.path / "filler"
        filler.mkdir(exist_ok=True)
        if what == "inodes":
            with contextlib.suppress(OSError):
                while True:
                    (filler / os.urandom(8).hex()).touch()
            return
        with open(filler / "bytes", "ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            file.truncate(file.tell() - leave)

    def empty(self) -> None:
        shutil.rmtree(self.path / "filler")

    def free(self) -> tuple[int, int]:
        status = os.statvfs(self.path)
        return status.f_bavail, status.f_favail

    def reserve(self) -> int:
        """Bytes that the reserve has."""
        return sum(path.stat().st_blocks * 512 for path in (self.root / "reserve").iterdir())

    def content(self) -> set[str]:
        """Every path of the instance, but those ALLOWED, and the workloads' own."""
        found = {str(path.relative_to(self.root)) for path in self.root.rglob("*")}
        return {path for path in found if not path.startswith(ALLOWED) and "/upper/" not in path}


@pytest.fixture
def disk(tmp_path: Path, namespace: str) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", namespace)
    try:
        made.vmm.run("image", "bootstrap", "busybox")
        yield made
        with contextlib.suppress(FileNotFoundError):
            made.empty()
        for workload in made.vmm.out("ps", "-aq", "--no-trunc").split():
            made.vmm.run("rm", "-fv", workload)
        assert made.vmm.run("system", "check").stdout == ""
        made.vmm.run("system", "teardown")
        assert made.vmm.traces(everything=True) == []
    finally:
        made.close()
        shutil.rmtree(made.vmm.run_dir, ignore_errors=True)


def full(disk: Disk, *argv: str, code: int = 125) -> None:
    """A command that must end with the one clear error, and use nothing of the reserve."""
    done = disk.vmm.run(*argv, check=False)
    assert done.returncode == code, (argv, done)
    assert " left on " in done.stderr and str(disk.mount) in done.stderr, (argv, done.stderr)
    assert "vmm system df" in done.stderr and done.stderr.count("vmm: ") == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_whatever_makes_room_works_on_a_full_disk(disk: Disk, what: str) -> None:
    vmm = disk.vmm
    vmm.run("volume", "create", "data")
    vmm.run("run", "-d", "--name", "live", *QUIET, *OBEDIENT)
    vmm.run("run", "-d", "--name", "held", *OBEDIENT)
    vmm.run("run", "--name", "ended", *QUIET, "busybox", "true")
    vmm.run("create", "--name", "idle", *QUIET, "busybox", "true")
    waiting = vmm.popen("wait", "live", stdout=subprocess.PIPE)
    until(lambda: "tick" in vmm.out("logs", "live"))
    disk.fill(what)
    assert 0 in disk.free()

    assert set(vmm.out("ps", "-a", "--format", "{{.Names}}").split()) == {
        "live", "held", "ended", "idle",
    }  # fmt: skip
    assert vmm.inspect("live")["State"]["Status"] == "running"
    assert "tick" in vmm.out("logs", "--tail", "1", "live")
    assert vmm.out("exec", "live", "echo", "inside") == "inside"
    assert "Containers" in vmm.out("system", "df")
    assert vmm.run("system", "check").stdout == ""
    vmm.run("system", "rebuild")
    vmm.run("stop", "live")
    assert waiting.communicate(timeout=10)[0] == b"3\n"
    state = vmm.inspect("live")["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 3, "")
    vmm.run("kill", "held")
    assert vmm.inspect("held")["State"]["ExitCode"] == 137
    disk.fill(what)  # what they ended with has gone
    vmm.run("volume", "rm", "data")
    vmm.run("rm", "ended", "idle")
    vmm.run("rm", "-f", "live", "held")
    vmm.run("image", "prune", "-f")
    vmm.run("rmi", "busybox")
    vmm.run("system", "prune", "-f")
    assert (vmm.out("ps", "-aq"), vmm.out("images", "-q")) == ("", "")
    assert vmm.run("system", "check", "--repair").stdout == ""


def test_the_writer_that_fills_the_disk_cannot_stop_a_removal(disk: Disk) -> None:
    vmm = disk.vmm
    others = [f"c{number}" for number in range(10)]
    for name in others:
        vmm.run("create", "--name", name, *QUIET, "busybox", "true")
    vmm.run("run", "-d", "--name", "greedy", *QUIET, *GREEDY)
    until(lambda: 0 in disk.free())
    with ThreadPoolExecutor(3) as pool:  # each needs a file; there are fewer than workloads
        done = list(pool.map(lambda name: vmm.run("rm", name, check=False), others))
    assert [one.returncode for one in done] == [0] * 10, done
    vmm.run("rm", "-f", "greedy")
    vmm.run("run", "--rm", *QUIET, "busybox", "true")
    assert disk.reserve() == 1 << 20


def test_a_killed_removal_is_finished_on_the_full_disk(disk: Disk) -> None:
    vmm, chance = disk.vmm, random.Random(1)
    names = [f"c{number}" for number in range(6)]
    for name in names:
        vmm.run("create", "--name", name, *QUIET, "busybox", "true")
    disk.fill()
    for name in names:
        process = vmm.popen("rm", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.08, 0.2))
        process.kill()
        process.wait()
    vmm.run("system", "check", "--repair")
    vmm.run("rm", "-f", *names, check=False)
    assert vmm.out("ps", "-aq") == ""
    assert vmm.run("system", "check").stdout == ""
    assert list((disk.root / "journal").iterdir()) == []


def test_a_lost_shim_is_told_on_a_full_disk(disk: Disk) -> None:
    vmm = disk.vmm
    vmm.run("run", "-d", "--name", "c", *QUIET, *OBEDIENT)
    disk.fill()
    (shim,) = [line for line in vmm._processes() if "vmm-shim" in line] or [""]
    pids = subprocess.run(["pgrep", "-f", "--", shim], capture_output=True, text=True, check=True)
    os.kill(int(pids.stdout.split()[0]), 9)
    until(lambda: "shim lost" in vmm.inspect("c")["State"]["Error"])
    vmm.run("rm", "c")


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_what_takes_room_is_refused_and_leaves_nothing(
    disk: Disk, tmp_path: Path, what: str
) -> None:
    vmm, context = disk.vmm, source(tmp_path)
    vmm.run("run", "-d", "--name", "c", *QUIET, *OBEDIENT)
    vmm.run("create", "--name", "new", *QUIET, "busybox", "true")
    before = disk.content()
    disk.fill(what)
    for argv in taking(context):
        full(disk, *argv)
    full(disk, "start", "new", code=1)
    assert disk.content() == before
    assert disk.reserve() == 1 << 20
    assert vmm.run("system", "check").stdout == ""
    disk.empty()
    for argv in taking(context):
        vmm.run(*argv)


def source(place: Path) -> Path:
    """A build context and an archive, of half a megabyte in a few files."""
    context = place / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM busybox\nCOPY . /files\nRUN cp -r /files /more\n")
    for number in range(4):
        (context / f"file{number}").write_bytes(os.urandom(64 << 10))
    subprocess.run(["tar", "-cf", place / "root.tar", "-C", context, "."], check=True)
    return context


def taking(context: Path) -> list[list[str]]:
    """Commands that write much."""
    return [
        ["run", "--rm", *QUIET, "busybox", "true"],
        ["create", "--name", "made", *QUIET, "-v", "/etc", "busybox", "true"],
        ["cp", str(context), "c:/copied"],
        ["image", "import", f"{context}/../root.tar", "imported"],
        ["image", "bootstrap", "--tag", "again", "busybox"],
        ["build", "-t", "built", str(context)],
        ["volume", "create", "volume"],
    ]


def test_a_disk_that_fills_up_on_the_way_leaves_nothing_half_made(
    disk: Disk, tmp_path: Path
) -> None:
    vmm, context = disk.vmm, source(tmp_path)
    vmm.run("run", "-d", "--name", "c", *QUIET, *OBEDIENT)
    outcomes = set()
    for kilobytes in (8, 40, 160, 400):
        disk.fill(leave=kilobytes << 10)
        for argv in taking(context):
            before = disk.content()
            code = vmm.run(*argv, check=False).returncode
            outcomes.add((argv[0], code))
            if code and argv[0] != "build":  # it keeps the steps that are whole
                assert disk.content() == before, argv
        assert vmm.run("system", "check").stdout == ""
        disk.empty()
        vmm.run("rm", "-fv", "made", check=False)
        vmm.run("rmi", "-f", "imported", "again", "built", check=False)
        vmm.run("exec", "c", "rm", "-rf", "/copied")
        vmm.run("system", "prune", "-f", "--volumes")
    assert {name for name, code in outcomes if code == 125} >= {"run", "create", "image", "build"}
    assert {code for _, code in outcomes} <= {0, 1, 125}
