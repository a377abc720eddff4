"""Fixtures: a real kernel, fetched once for the session, and layers that are hard to copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.guest.guesttrees import add_layer, change_second, fill_first
from vmm.guest.kernels import Kernel, KernelStore
from vmm.guest.packages import fetch
from vmm.ports.runner import HostRunner
from vmm.storage.overlay import OverlayDriver


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> KernelStore:
    """A store with the distribution's kernel for virtual machines, and none of the host's."""
    root = tmp_path_factory.mktemp("kernels")
    store = KernelStore(root / "kernels", boot=root / "none")
    fetch(store, HostRunner())
    return store


@pytest.fixture(scope="session")
def kernel(fetched: KernelStore) -> Kernel:
    return fetched.choose()


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> tuple[OverlayDriver, list[str]]:
    """Two layers with every kind of file, the second changing the first; do not change them."""
    root = tmp_path_factory.mktemp("layers")
    driver = OverlayDriver(root / "layers")
    chain = add_layer(driver, [], root / "work", fill_first)
    return driver, add_layer(driver, chain, root / "work", change_second)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workload's directory."""
    path = tmp_path / "root" / "workloads" / "one"
    path.mkdir(parents=True)
    return path
