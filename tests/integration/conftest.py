"""Fixtures of the tests that run whole workloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance
from tests.integration.isolation_lab import Lab


@pytest.fixture
def lab(vmm: Instance, tmp_path: Path) -> Iterator[Lab]:
    """An instance with a program that attacks it and files of the host that must not change."""
    made = Lab(vmm, tmp_path)
    yield made
    if made.images:
        vmm.run("rmi", "-f", *made.images, check=False)
