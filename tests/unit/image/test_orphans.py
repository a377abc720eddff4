"""Layers of a build's cache do not outlive the layer they lie on."""

from __future__ import annotations

from pathlib import Path

from tests.unit.storage.tars import make_tar, member
from vmm.image.store import ImageStore
from vmm.storage.overlay import OverlayDriver


def test_removing_a_base_removes_cached_layers_on_it(tmp_path: Path) -> None:
    root = tmp_path / "store"
    driver = OverlayDriver(root / "layers")
    store = ImageStore(root, driver)
    base = store.import_tar(make_tar(member("f", b"base")), "base")
    parent = base.chain_ids[-1]
    cached = driver.apply(make_tar(member("g", b"step")), parent)
    above = driver.apply(make_tar(member("h", b"next")), cached.chain_id)
    other = store.import_tar(make_tar(member("f", b"other")), "other")
    store.remove("base")
    assert not any(driver.has(chain) for chain in (parent, cached.chain_id, above.chain_id))
    assert driver.has(other.chain_ids[-1])
    assert store.check() == []
