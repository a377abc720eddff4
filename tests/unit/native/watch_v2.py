"""Run in a guest that has cgroup2 alone (tests/lab): what a launcher does there, as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.unit.native.launching import Case
from tests.unit.native.watching import Running, running
from vmm.model.launch import op

ROOT = Path("/sys/fs/cgroup")
GROUP = ROOT / "vmm-watch/w"
SCRIPT = (
    "(while :; do i=$((i+1)); echo $i >/count; done) & (sleep 999; :) & "
    "x=$(head -c 9000000 /dev/zero | od -v | head -c 9000000); : >/ready; wait"
)


def prepare(case: Case) -> None:
    ops = [op("cgroup.make", str(GROUP.parent))]
    for above in (ROOT, GROUP.parent):
        control = str(above / "cgroup.subtree_control")
        ops += [op("cgroup.try", control, f"+{c}") for c in ("memory", "pids", "io", "cpu")]
    memory = [str(GROUP / f"memory.{name}") for name in ("current", "max", "stat")]
    case.host += [
        *ops,
        op("cgroup.make", str(GROUP)),
        op("cgroup.write", str(GROUP / "pids.max"), 50),
        op("cgroup.join", str(GROUP)),
        op("cgroup.kill", str(GROUP)),
        op("cgroup.freeze", str(GROUP / "cgroup.freeze"), "1", "0"),
        op("stats", "memory2", *memory),
        op("stats", "cpu", str(GROUP / "cpu.stat")),
        op("stats", "pids", str(GROUP / "pids.current"), str(GROUP / "pids.max")),
        op("stats", "io", str(GROUP / "io.stat")),
    ]


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not check():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def moves(path: Path) -> bool:
    before = path.read_bytes()
    for _ in range(25):
        time.sleep(0.02)
        if path.read_bytes() != before:
            return True
    return False


def watch(launcher: Running, case: Case) -> dict[str, object]:
    until(lambda: (case.base / "upper/ready").exists())
    found: dict[str, object] = {"stats": launcher.stats()}
    count = case.base / "upper/count"
    launcher.ask("freeze")
    found["frozen"] = "frozen 1" in (GROUP / "cgroup.events").read_text()
    found["moves frozen"] = moves(count)
    found["top"] = sorted(line[13] for line in launcher.top())
    launcher.ask("thaw")
    found["moves thawed"] = moves(count)
    below = GROUP / "deeper"
    below.mkdir()
    pid = next(line[0] for line in launcher.top() if line[13] == "sleep 999")
    with contextlib.suppress(OSError):
        (below / "cgroup.procs").write_text(pid)
    found["below"] = "sleep 999" in {line[13] for line in launcher.top()}
    launcher.update(op("cgroup.write", str(GROUP / "pids.max"), 77))
    found["pids_limit"] = launcher.stats()["pids_limit"]
    launcher.ask("freeze")
    found["code"] = launcher.end()
    found["left"] = os.path.exists(GROUP)
    return found


def main() -> None:
    base = Path(sys.argv[1])
    base.mkdir()
    case = Case(base, Path(sys.argv[2]))
    prepare(case)
    with running(case, SCRIPT) as launcher:
        print(json.dumps(watch(launcher, case)))


if __name__ == "__main__":
    main()
