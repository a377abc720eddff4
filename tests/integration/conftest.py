"""Fixtures of the tests that run whole workloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.instance import Instance
from tests.integration.isolation_lab import Lab


@pytest.fixture
def lab(vmm: Instance, tmp_path: Path) -> Lab:
    """An instance with a program that attacks it and files of the host that must not change."""
    return Lab(vmm, tmp_path)
