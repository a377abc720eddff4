"""A real shim on a busybox root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shim.guestshimlab import GuestLab
from tests.unit.shim.shimlab import Lab, make_root

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def programs() -> Path:
    """Where the native programs are; VMM_TEST_PROGRAMS names others, built with sanitizers, say."""
    if "VMM_TEST_PROGRAMS" in os.environ:
        return Path(os.environ["VMM_TEST_PROGRAMS"])
    subprocess.run(["make", "-s", "-j2", "-C", REPO / "native"], check=True)
    return REPO / "build" / "native"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def lab(tmp_path: Path, programs: Path, root: Path) -> Iterator[Lab]:
    """A place for one workload; whatever runs in it is ended, and must leave nothing."""
    if os.geteuid():
        pytest.skip("not root")
    lab = Lab(tmp_path, programs, root)
    yield lab
    lab.close()


@pytest.fixture
def guest(tmp_path: Path, programs: Path, root: Path) -> Iterator[GuestLab]:
    if os.geteuid():
        pytest.skip("not root")
    lab = GuestLab(tmp_path, programs, root)
    yield lab
    lab.close()
    errors = tmp_path / "peer.err"
    assert not errors.exists() or not errors.read_text()
