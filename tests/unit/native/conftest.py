"""Builds the native programs once; a fresh workload for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.native.launching import Case

NATIVE = Path(__file__).parents[3] / "native"


@pytest.fixture(scope="session")
def libexec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the native programs are; VMM_TEST_PROGRAMS names others, built with sanitizers, say."""
    if "VMM_TEST_PROGRAMS" in os.environ:
        return Path(os.environ["VMM_TEST_PROGRAMS"])
    out = tmp_path_factory.mktemp("libexec")
    targets = [str(out / "vmm-launch"), str(out / "vmm-init")]
    subprocess.run(
        ["make", "-s", "-j2", "-C", str(NATIVE), f"BUILD={out}", "CFLAGS=-O1", *targets], check=True
    )
    return out


@pytest.fixture
def case(tmp_path: Path, libexec: Path) -> Iterator[Case]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert Path("/bin/busybox").exists(), "install busybox-static"
    yield Case(tmp_path, libexec)
    shutil.rmtree(tmp_path, ignore_errors=True)
