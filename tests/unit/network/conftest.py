"""Fixtures of the network tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.network.netlab import Lab, Namespace


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    import pyroute2  # noqa: F401  loaded once here, not in every child

    made = Lab(tmp_path, f"vmmtest-n{os.getpid()}")
    yield made
    made.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace(f"vmmtest-n{os.getpid()}-0")
    yield made
    made.close()
