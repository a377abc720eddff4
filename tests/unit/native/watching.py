"""A running workload with groups of its own, and commands to its launcher (vmm-launch -c)."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.unit.native.launching import Case, cgroup_of, own_name
from vmm.model.launch import Op, encode_ops, op

CONTROLLERS = ("memory", "pids", "cpuacct", "freezer")


class Running:
    """Each command's lines; a refused one raises RuntimeError."""

    def __init__(self, process: subprocess.Popen[str], base: Path) -> None:
        self._process = process
        self._base = base
        assert self._line() == "running"

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the launcher ended"
        return line.rstrip("\n")

    def ask(self, command: str) -> list[str]:
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        lines = []
        while not (line := self._line()).startswith(("ok", "error ")):
            lines.append(line)
        if line != "ok":
            raise RuntimeError(line)
        return lines

    def stats(self) -> dict[str, int]:
        pairs = [line.split("=") for line in self.ask("stats")]
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name: int(value) for name, value in pairs}

    def top(self) -> list[list[str]]:
        return [line.split("\t") for line in self.ask("top")]

    def update(self, *ops: Op) -> None:
        path = self._base / "update"
        path.write_bytes(encode_ops(ops))
        self.ask(f"update {path}")

    def end(self) -> int:
        assert self._process.stdin
        self._process.stdin.close()
        return self._process.wait(20)


def groups(case: Case) -> dict[str, Path]:
    """Groups below our own, joined, with all that is watched in them (cgroup v1)."""
    made = {c: cgroup_of(c) / "vmm-test" / own_name("w") for c in CONTROLLERS}
    for path in made.values():
        case.host += [op("cgroup.make", str(path)), op("cgroup.join", str(path))]
    memory = [
        str(made["memory"] / f"memory.{n}") for n in ("usage_in_bytes", "limit_in_bytes", "stat")
    ]
    case.host += [
        op("cgroup.kill", str(made["freezer"])),
        op("cgroup.freeze", str(made["freezer"] / "freezer.state"), "FROZEN", "THAWED"),
        op("stats", "cpuacct", str(made["cpuacct"] / "cpuacct.usage")),
        op("stats", "memory1", *memory),
        op("stats", "pids", str(made["pids"] / "pids.current"), str(made["pids"] / "pids.max")),
    ]
    return made


@contextlib.contextmanager
def running(case: Case, script: str) -> Iterator[Running]:
    plan = case.base / "plan"
    plan.write_bytes(case.plan("sh", "-c", script).encode())
    process = subprocess.Popen(
        [str(case.libexec / "vmm-launch"), "-c", str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        yield Running(process, case.base)
    finally:
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        process.stdout.close()
