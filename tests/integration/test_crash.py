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
from collections.abc import Callable, Iterator
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
        "FROM busybox\nRUN echo one > /one\nCOPY file /file\nRUN --network=none echo two > /two\n"
        if False
        else "FROM busybox\nRUN echo one > /one\nCOPY file /file\nCMD [\"true\"]\n"
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
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["--root", sys.argv[1], *argv])
    return [code, out.getvalue(), err.getvalue()]
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
    assert listed[0] == 0 and listed[2] == "", (what, listed)
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
    found = [p for p in vmm.root.rglob("*.tmp")] + list(vmm.run_dir.rglob("*.tmp"))
    found += [p for p in (vmm.run_dir / "locks").iterdir() if len(p.name) == 64]
    for place in ("layers/tmp", "images/tmp"):
        found += list((vmm.root / place).glob("*"))
    assert claims(vmm) == ([], [])
    images = json.loads((vmm.root / "images/index.json").read_text())["manifests"]
    found += list((vmm.root / "layers").glob("[0-9a-f]*.json"))[len(images):]
    found += list((vmm.root / "images/blobs/sha256").iterdir())[3 * len(images):]  # fmt: skip
    return found
