"""Start-up: a command imports only what it needs."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys

import pytest

HEAVY = {"msgspec", "pyroute2", "asyncio", "sqlite3", "rich", "pydantic", "yaml", "cffi", "logging"}


def imported(*args: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vmm", *args],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "vmm.cli.app" in modules
    return {module.partition(".")[0] for module in modules} | {
        module for module in modules if module.startswith("vmm.")
    }


@pytest.mark.parametrize("args", [["--help"], ["image", "--help"], ["version"], ["run", "--help"]])
def test_light(args: list[str]) -> None:
    modules = imported(*args)
    assert not modules & HEAVY
    assert not {m for m in modules if m.startswith("vmm.engine")}


def test_help_of_the_whole_imports_no_command() -> None:
    modules = {m for m in imported("--help") if m.startswith("vmm.cli.")}
    assert modules == {"vmm.cli.app", "vmm.cli.context", "vmm.cli.flags", "vmm.cli.main",
                       "vmm.cli.table"}  # fmt: skip


def test_help_is_quick() -> None:
    """CPU of the best of three, against the budget of 120 ms."""

    def spent() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "vmm", "--help"], stdout=subprocess.DEVNULL, check=True,
            env=os.environ,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    assert min(spent() for _ in range(3)) < 0.120
