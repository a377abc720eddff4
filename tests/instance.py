"""An instance of vmm under test, driven from outside through its command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: How long teardown of the kernel's objects may take (seconds).
PATIENCE = 10.0


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that comes in a moment."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


class Instance:
    """Runs ``vmm --root …`` inside a network namespace and looks for what it leaves."""

    def __init__(self, root: Path, namespace: str) -> None:
        self.root = root
        self.namespace = namespace
        self.id = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8]
        self.mark = f"vmm-{self.id}"
        self.run_dir = Path("/run/vmm") / self.id
        self.enter = ["nsenter", f"--net=/run/netns/{namespace}"]

    def argv(self, *args: str) -> list[str]:
        return [*self.enter, sys.executable, "-m", "vmm", "--root", str(self.root), *args]

    def run(
        self,
        *args: str,
        check: bool = True,
        input: str | None = None,
        timeout: float = 50,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """One command; its output as text. ``check``: it must succeed."""
        done = subprocess.run(
            self.argv(*args),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            check=False,
        )
        if check:
            assert done.returncode == 0, (
                f"vmm {args}: {done.returncode}\n{done.stderr}{done.stdout}"
            )
        return done

    def out(self, *args: str, **options: Any) -> str:
        """Standard output of a command that must succeed, without the last newline."""
        return self.run(*args, **options).stdout.removesuffix("\n")

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.argv(*args), **options)

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out("inspect", name))[0]
        return found

    def inside(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A program of the host, in the instance's network namespace."""
        return subprocess.run(
            [*self.enter, *argv], capture_output=True, text=True, check=False, **options
        )

    def traces(self, everything: bool = False) -> list[str]:
        """What is left of workloads (``everything``: of the instance), after some patience."""
        end = time.monotonic() + PATIENCE
        while left := self._traces(everything):
            if time.monotonic() > end:
                return left
            time.sleep(0.05)
        return []

    def _traces(self, everything: bool) -> list[str]:
        left = [f"mount {line}" for line in self._mounts()]
        left += [f"process {line}" for line in self._processes()]
        links = [name for name in self._links() if name.startswith("v")]
        bridge = self.mark if everything else ""
        left += [f"link {x}" for x in links if not x.startswith("vmm-") or x == bridge]
        left += [f"cgroup {path}" for path in self._cgroups(everything)]
        left += [f"directory {p}" for p in self.run_dir.glob("[0-9a-f]" * 12)]
        left += [f"directory {p}" for p in (self.root / "workloads").glob("*")]
        left += [f"directory {p}" for p in (self.root / "builds").glob("*")]
        left += [f"journal {p}" for p in (self.root / "journal").glob("*")]
        if everything:
            tables = self.inside("nft", "list", "tables").stdout.splitlines()
            left += [f"table {line}" for line in tables if self.mark in line]
        return left

    def _mounts(self) -> list[str]:
        text = Path("/proc/self/mountinfo").read_text()
        return [line for line in text.splitlines() if str(self.root) in line]

    def _processes(self) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(self.root) in command:
                found.append(command.replace("\0", " ").strip())
        return found

    def _links(self) -> list[str]:
        shown = json.loads(self.inside("ip", "-j", "link").stdout)
        return [link["ifname"] for link in shown if link["ifname"] not in ("lo", "up0", "up1")]

    def _cgroups(self, everything: bool) -> list[Path]:
        base = Path("/sys/fs/cgroup")
        parents = [p for depth in ("*/", "*/*/", "*/*/*/") for p in base.glob(depth + self.mark)]
        if everything:
            return [p for p in parents if any(child.is_dir() for child in p.iterdir())]
        return [child for parent in parents for child in parent.glob("*/")]
