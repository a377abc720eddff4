"""``kill -9`` at chosen instants, damaged files, a full disk, and commands at the same time."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.instance import Instance

#: Where a command changes something or talks to somebody: it is killed as it enters one of these.
CALLS = (
    "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "chmod",
    "connect", "sendto", "sendmsg", "flock", "fsync", "ftruncate", "pwrite64", "vfork", "clone",
    "clone3", "wait4", "socket", "pipe2", "mount", "move_mount", "symlink",
)  # fmt: skip
IMAGE_CMD = ["busybox", "sleep", "1000"]


class Case:
    """A command, and what must be there before it."""

    def __init__(self, name: str, argv: list[str], before: list[list[str]] | None = None) -> None:
        self.name = name
        self.argv = argv
        self.before = before or []


RUNNING = [["run", "-d", "--name", "c", "-v", "/anonymous", "-p", "127.0.0.1::80", *IMAGE_CMD]]
CREATED = [["create", "--name", "c", "-v", "/anonymous", *IMAGE_CMD]]
CASES = [
    Case("create", ["create", "--name", "c", "-v", "/a", "-v", "named:/b", *IMAGE_CMD]),
    Case("run -d", ["run", "-d", "--name", "c", "-p", "127.0.0.1::80", *IMAGE_CMD]),
    Case("run --rm", ["run", "--rm", "--name", "c", "-v", "/a", "busybox", "true"]),
    Case("start", ["start", "c"], CREATED),
    Case("stop", ["stop", "-t", "0", "c"], RUNNING),
    Case("rm -f", ["rm", "-fv", "c"], RUNNING),
    Case("rename", ["rename", "c", "d"], CREATED),
    Case("meta set", ["meta", "set", "c", "key=value"], CREATED),
    Case("pause", ["pause", "c"], RUNNING),
    Case("update", ["update", "-m", "64m", "--cpus", "0.5", "--restart", "always", "c"], RUNNING),
    Case("cp in", ["cp", "{context}/.", "c:/made"], RUNNING),
    Case("cp out of a stopped one", ["cp", "c:/etc/passwd", "{context}/got"], CREATED),
    Case("build", ["build", "-t", "made", "--no-cache", "{context}"]),
    Case("rmi", ["rmi", "made"], [["build", "-t", "made", "{context}"]]),
    Case("import", ["image", "import", "{context}/root.tar", "made"]),
    Case("volume create", ["volume", "create", "named"]),
]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build context, with a small tar."""
    path = tmp_path_factory.mktemp("context")
    (path / "Dockerfile").write_text(
        'FROM busybox\nRUN echo one > /one\nCOPY file /file\nCMD ["true"]\n'
    )
    (path / "file").write_text("content")
    subprocess.run(["tar", "-cf", path / "root.tar", "-C", path, "file"], check=True)
    return path


def filled(argv: list[str], context: Path) -> list[str]:
    return [word.replace("{context}", str(context)) for word in argv]


def traced(vmm: Instance, argv: list[str], *options: str) -> subprocess.CompletedProcess[bytes]:
    """One command under strace(1), itself only and not the programs it starts."""
    return subprocess.run(
        ["strace", "-qq", *options, *vmm.argv(*argv)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=50,
        check=False,
    )


def instants(vmm: Instance, argv: list[str], log: Path) -> list[tuple[str, int]]:
    """Every (system call, ordinal) at which the command can be killed, of a run of it."""
    done = traced(vmm, argv, "-o", str(log), "-e", "trace=" + ",".join("?" + c for c in CALLS))
    assert done.returncode == 0, done.stderr
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for call in re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE):
        seen[call] += 1
        found.append((call, seen[call]))
    return found


def kill_at(vmm: Instance, argv: list[str], call: str, ordinal: int) -> None:
    traced(vmm, argv, "-o", "/dev/null", "-e", f"trace={call}",
           "-e", f"inject={call}:signal=KILL:when={ordinal}")  # fmt: skip


SURVIVOR = """
import contextlib, io, json, sys
from vmm.cli.main import main
def call(argv):
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in "oe")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["--root", sys.argv[1], *argv])
    return [code, *(text.buffer.getvalue().decode() for text in (out, err))]
print(json.dumps([call(argv) for argv in json.loads(sys.argv[2])]))
"""


def batch(vmm: Instance, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Commands one after another in one process: (exit code, stdout, stderr) of each."""
    argv = [*vmm.enter, sys.executable, "-c", SURVIVOR, str(vmm.root), json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


def claims(vmm: Instance) -> tuple[list[Any], list[Any]]:
    """The index's content."""
    with contextlib.closing(sqlite3.connect(vmm.root / "index.db")) as db:
        return (
            db.execute("SELECT id, name FROM workloads ORDER BY id").fetchall(),
            db.execute("SELECT network, address, workload FROM addresses ORDER BY 2").fetchall(),
        )


def assert_understood(vmm: Instance, what: str) -> None:
    """After a kill: reading works, the next change too, repair mends all, rebuild agrees."""
    nxt = ["create", "--name", "next", "--network", "none", "busybox", "true"]
    read, listed, made, gone, repair, clean = batch(
        vmm, ["system", "check"], ["ps", "-a"], nxt, ["rm", "next"],
        ["system", "check", "--repair"], ["system", "check"],
    )  # fmt: skip
    assert read[0] in (0, 1) and "unexpected" not in read[2], (what, read)
    assert listed[0] == 0 and "damaged" not in listed[2], (what, listed)
    assert made[0] == gone[0] == 0, (what, made, gone)
    assert repair[0] == 0, (what, repair)
    assert clean == (0, "", ""), (what, repair, clean)
    before = claims(vmm)
    (rebuilt,) = batch(vmm, ["system", "rebuild"])
    assert rebuilt[0] == 0 and claims(vmm) == before, (what, rebuilt)


def emptied(vmm: Instance, what: str) -> None:
    """Everything is removed as a user would, and then nothing is left."""
    (names,) = batch(vmm, ["ps", "-aq", "--no-trunc"])
    removed = [batch(vmm, ["rm", "-fv", name])[0] for name in names[1].split()]
    assert all(one[0] == 0 for one in removed), (what, removed)
    images, volumes = batch(vmm, ["images", "-q", "-f", "reference=made"], ["volume", "ls", "-q"])
    doomed = [["rmi", "-f", i] for i in dict.fromkeys(images[1].split())]
    doomed += [["volume", "rm", v] for v in volumes[1].split() if v == "named"]
    after = batch(vmm, *doomed, ["system", "prune", "-f"], ["volume", "ls", "-q"])
    assert [one[0] for one in after] == [0] * len(after), (what, after)
    assert after[-1][1] == "", (what, "a volume is left", after[-1])
    assert vmm.traces() == [], what
    assert not strays(vmm), what


def strays(vmm: Instance) -> list[Path]:
    """Files that no command should leave: temporaries, locks of workloads, unneeded layers."""
    found = list(vmm.root.rglob("*.tmp")) + list(vmm.run_dir.rglob("*.tmp"))
    found += [p for p in (vmm.run_dir / "locks").iterdir() if len(p.name) == 64]
    for place in ("layers/tmp", "images/tmp"):
        found += list((vmm.root / place).glob("*"))
    assert claims(vmm) == ([], [])
    images = json.loads((vmm.root / "images/index.json").read_text())["manifests"]
    found += list((vmm.root / "layers").glob("[0-9a-f]*.json"))[len(images) :]
    found += list((vmm.root / "images/blobs/sha256").iterdir())[3 * len(images):]  # fmt: skip
    return found


#: Kills of each command; a full sweep (VMM_TEST_KILLS=200) takes half an hour.
KILLS = int(os.environ.get("VMM_TEST_KILLS", "1"))
SAMPLE = random.Random(20).sample


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_killed_at_any_instant(vmm: Instance, case: Case, context: Path, tmp_path: Path) -> None:
    argv = filled(case.argv, context)

    def prepare() -> None:
        done = batch(vmm, *(filled(one, context) for one in case.before))
        assert all(one[0] == 0 for one in done), done

    prepare()
    found = instants(vmm, argv, tmp_path / "log")
    emptied(vmm, case.name)
    for call, ordinal in SAMPLE(found, min(KILLS, len(found))):
        what = f"{case.name} killed at {call} {ordinal}"
        prepare()
        kill_at(vmm, argv, call, ordinal)
        assert_understood(vmm, what)
        emptied(vmm, what)


# ---- the shim, the reaper, the host


def stored(vmm: Instance, name: str, file: str = "state.json") -> Path:
    return vmm.root / "workloads" / vmm.out("inspect", "-f", "{{.Id}}", name) / file


def gone(pid: int, patience: float = 10) -> None:
    """Wait until a killed process is no more."""
    end = time.monotonic() + patience
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < end
        time.sleep(0.02)


def shims(vmm: Instance) -> list[int]:
    """The instance's shims."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"/vmm-shim") and os.fsencode(vmm.root) in b" ".join(words[1:]):
                found.append(int(path.parent.name))
    return found


def test_a_lost_shim_of_a_workload_that_removes_itself(vmm: Instance) -> None:
    vmm.run("run", "-d", "--rm", "--name", "c", *IMAGE_CMD)
    os.kill(json.loads(stored(vmm, "c").read_text())["shim_pid"], signal.SIGKILL)
    check, repair, again = batch(
        vmm, ["system", "check"], ["system", "check", "--repair"], ["system", "check"]
    )
    assert check[0] == 1 and "shim lost" in check[1]
    assert (repair[0], again) == (0, (0, "", ""))
    assert vmm.traces() == []


def test_a_shim_killed_before_the_start(vmm: Instance, tmp_path: Path) -> None:
    vmm.run("create", "--name", "c", *IMAGE_CMD)
    # The last connection is the one over which the start is asked for.
    found = instants(vmm, ["start", "c"], tmp_path / "log")
    vmm.run("stop", "-t", "0", "c")
    last = max(number for call, number in found if call == "connect")
    kill_at(vmm, ["start", "c"], "connect", last)
    (socket,) = vmm.run_dir.glob("*/ctl.sock")
    (shim,) = shims(vmm)
    os.kill(shim, signal.SIGKILL)
    gone(shim)
    assert socket.exists()
    assert vmm.inspect("c")["State"]["Running"] is False
    assert vmm.out("start", "c") == "c"
    assert vmm.inspect("c")["State"]["Running"] is True


def test_a_killed_reaper_is_run_again(vmm: Instance, tmp_path: Path) -> None:
    for ordinal in (1, 3):
        vmm.run("run", "-d", "--name", "c", "--rm", "-v", "/a", *IMAGE_CMD)
        workload = vmm.inspect("c")["Id"]
        state = json.loads(stored(vmm, "c").read_text())
        os.kill(state["shim_pid"], signal.SIGSTOP)
        os.kill(state["pid"], signal.SIGKILL)
        reaper = subprocess.Popen(
            ["strace", "-qq", "-o", "/dev/null", "-e", "trace=unlink,unlinkat,rmdir",
             "-e", f"inject=unlink,unlinkat,rmdir:signal=KILL:when={ordinal}",
             *vmm.argv("system", "reap", workload)]
        )  # fmt: skip
        os.kill(state["shim_pid"], signal.SIGKILL)
        os.kill(state["shim_pid"], signal.SIGCONT)
        assert reaper.wait(20) != 0
        vmm.run("system", "reap", workload)
        vmm.run("system", "check", "--repair")
        assert vmm.traces() == []
        assert vmm.out("volume", "ls", "-q") == ""


def test_the_host_rebooted(vmm: Instance) -> None:
    policies = {"no": "n", "always": "a", "unless-stopped": "u", "on-failure": "f"}
    create = ["run", "-d", "--network", "none", "--restart"]
    batch(vmm, *[[*create, how, "--name", name, *IMAGE_CMD] for how, name in policies.items()])
    batch(vmm, [*create, "unless-stopped", "--name", "s", *IMAGE_CMD], ["stop", "-t", "0", "s"])
    files = [stored(vmm, name) for name in policies.values()]
    for file in files:
        state = json.loads(file.read_text())
        os.kill(state["shim_pid"], signal.SIGKILL)
        gone(state["shim_pid"])
        file.write_text(json.dumps({**state, "boot_id": "another"}))
    (shown,) = batch(vmm, ["inspect", "-f", "{{.State.Status}} {{.State.Error}}", *"nauf"])
    assert shown[1].splitlines() == ["exited host rebooted"] * 4
    assert sorted(vmm.out("system", "boot").split()) == ["a", "u"]
    assert sorted(vmm.out("ps", "--format", "{{.Names}}").split()) == ["a", "u"]
    assert vmm.run("system", "check").stdout == ""


# ---- damaged files


@pytest.mark.parametrize("damage", ["gone", "garbage", "page", "empty"])
def test_a_lost_index_is_made_again(vmm: Instance, damage: str) -> None:
    vmm.run("run", "-d", "--name", "c", *IMAGE_CMD)
    vmm.run("create", "--name", "d", *IMAGE_CMD)
    before = claims(vmm)
    index = vmm.root / "index.db"
    index.with_name("index.db-journal").unlink()
    size = index.stat().st_size
    if damage in ("gone", "empty"):
        index.unlink()
    if damage == "empty":
        index.touch()
    if damage == "garbage":
        index.write_bytes(os.urandom(size))
    if damage == "page":
        with open(index, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096)
    listed, check, rebuilt, after = batch(
        vmm, ["ps", "-a"], ["system", "check"], ["system", "rebuild"], ["ps", "-aq"]
    )
    if damage in ("gone", "empty"):
        assert listed[0] == check[0] == 0
    else:
        assert listed[0] == 1 and "is damaged" in listed[2] and "vmm system rebuild" in listed[2]
        assert check[0] == 1 and "is damaged" in check[1]
    assert rebuilt[0] == 0, rebuilt
    assert len(after[1].split()) == 2
    assert claims(vmm) == before


def test_a_damaged_spec_stands_in_nobodys_way(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "bad", *IMAGE_CMD)
    vmm.run("run", "-d", "--name", "good", *IMAGE_CMD)
    stored(vmm, "bad", "workload.json").write_bytes(b"\xff{]")
    listed, info, check, start, repair, removed = batch(
        vmm, ["ps", "--format", "{{.Names}}"], ["info"], ["system", "check"], ["start", "bad"],
        ["system", "check", "--repair"], ["rm", "-f", "bad"],
    )  # fmt: skip
    assert listed[:2] == (0, "good\n") and "workload.json" in listed[2]
    assert info[0] == 0
    assert check[0] == 1 and "workload.json" in check[1]
    assert start[0] == 1 and "vmm rm -f" in start[2]
    assert repair[0] == 1 and "not mended" in repair[2]
    assert removed[0] == 0, removed
    assert batch(vmm, ["system", "check"])[0] == (0, "", "")
    assert len(shims(vmm)) == 1


@pytest.mark.parametrize("live", [True, False])
def test_a_damaged_state_is_mended(vmm: Instance, live: bool) -> None:
    vmm.run("run", "-d", "--name", "c", *IMAGE_CMD)
    vmm.run("run", "-d", "--name", "good", *IMAGE_CMD)
    file = stored(vmm, "c")
    if not live:
        os.kill(json.loads(file.read_text())["shim_pid"], signal.SIGKILL)
    file.write_bytes(b'{"status": "runn')
    listed, info, start, repair, check, after = batch(
        vmm, ["ps", "--format", "{{.Names}}"], ["info"], ["start", "c"],
        ["system", "check", "--repair"], ["system", "check"],
        ["inspect", "-f", "{{.State.Status}}", "c"],
    )  # fmt: skip
    assert listed[:2] == (0, "good\n") and "state.json" in listed[2]
    assert info[0] == 0, info
    assert start[0] == 1 and "vmm system check --repair" in start[2]
    assert (repair[0], check) == (0, (0, "", "")), (repair, check)
    assert after[1] == ("running\n" if live else "exited\n")
    file.write_bytes(b"")
    assert vmm.run("rm", "-f", "c").returncode == 0


# ---- a full disk


@pytest.fixture
def small(namespace: str, tmp_path: Path) -> Iterator[Instance]:
    """An instance on a file system of its own, of a few megabytes."""
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", root], check=True)
    made = Instance(root / "root", namespace)
    made._mounts = list  # type: ignore[method-assign]  # the file system is the test's own
    try:
        made.run("image", "bootstrap", "busybox")
        yield made
    finally:
        made.run("system", "teardown", check=False)
        subprocess.run(["umount", root], check=True)
        subprocess.run(["rm", "-rf", made.run_dir], check=True)


def test_a_full_disk_leaves_nothing_half_done(small: Instance, context: Path) -> None:
    small.run("create", "--name", "old", "busybox", "true")
    before = claims(small)
    filler = small.root / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with open(filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    for argv in (
        ["create", "--name", "c", "-v", "/a", "busybox", "true"],
        ["image", "import", str(context / "root.tar"), "made"],
        ["volume", "create", "named"],
        ["meta", "set", "old", "key=value"],
        ["build", "-t", "made", str(context)],
    ):
        ((code, _, error),) = batch(small, argv)
        assert code != 0, argv
        assert re.search("[Nn]o space left|disk is full|has space", error), (argv, error)
    filler.unlink()
    assert batch(small, ["system", "check", "--repair"], ["system", "check"])[1] == (0, "", "")
    assert claims(small) == before
    assert small.out("meta", "ls", "old") == ""
    emptied(small, "full disk")


# ---- at the same time


def together(vmm: Instance, *commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda argv: vmm.run(*argv, check=False), commands))


def test_the_same_name_is_given_once(vmm: Instance) -> None:
    done = together(vmm, *[["create", "--name", "same", *IMAGE_CMD]] * 6)
    assert sorted(one.returncode for one in done) == [0, *[125] * 5]
    assert all("already in use" in one.stderr for one in done if one.returncode)
    assert len(vmm.out("ps", "-aq").split()) == 1


def test_two_commands_on_one_workload(vmm: Instance) -> None:
    vmm.run("create", "--name", "c", *IMAGE_CMD)
    starts = together(vmm, ["start", "c"], ["start", "c"])
    assert [one.returncode for one in starts] == [0, 0], starts
    assert len(shims(vmm)) == 1
    stop, remove = together(vmm, ["stop", "-t", "0", "c"], ["rm", "-f", "c"])
    assert remove.returncode == 0, remove
    assert stop.returncode == 0 or "No such" in stop.stderr, stop
    vmm.run("run", "-d", "--name", "c", *IMAGE_CMD)
    removals = together(vmm, ["rm", "-f", "c"], ["rm", "-f", "c"], ["start", "c"], ["stop", "c"])
    assert 0 in [one.returncode for one in removals[:2]]
    for one in removals:
        assert one.returncode == 0 or "No such" in one.stderr, one
    assert vmm.traces() == []
    assert batch(vmm, ["system", "check"])[0] == (0, "", "")


def test_many_at_once_and_a_check_among_them(vmm: Instance) -> None:
    runs = [["run", "--rm", "-v", "/a", "busybox", "echo", str(n)] for n in range(8)]
    done = together(vmm, *runs, ["system", "check", "--repair"], ["system", "rebuild"])
    assert [one.stdout for one in done[:8]] == [f"{n}\n" for n in range(8)], done
    assert [one.returncode for one in done] == [0] * 10, done
    assert vmm.traces() == []
    assert not strays(vmm)
    assert vmm.out("volume", "ls", "-q") == ""
