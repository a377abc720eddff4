"""The image store: found by any name, freed exactly, never half written."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.storage.tars import directory, make_tar, member
from vmm.image.store import ImageStore
from vmm.model.errors import Conflict, CorruptStore, HostError, NotFound, UsageError, VmmError
from vmm.model.image import ContainerConfig, Image, Layer
from vmm.storage.overlay import OverlayDriver


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    root = tmp_path / "store"
    return ImageStore(root, OverlayDriver(root / "layers"))


def make(store: ImageStore, name: str, text: bytes = b"x", **more: Any) -> Image:
    return store.import_tar(make_tar(member("f", text)), name, **more)


def build_on(store: ImageStore, image: Image, name: str, text: bytes) -> Image:
    """A child image: one more layer, another command."""
    data = make_tar(member("g", text)).getvalue()
    with store.blobs.writer() as writer:
        writer.write(data)
        writer.commit()
    top = store.driver.apply(io.BytesIO(data), image.chain_ids[-1])
    layers: list[Layer] = [store.driver.layer(chain) for chain in image.chain_ids]
    config = msgspec.structs.replace(image.config, config=ContainerConfig(cmd=["child"]))
    return store.commit(config, [*layers, top], [name])


def files(store: ImageStore) -> set[str]:
    """Blobs and layers on disk."""
    layers = store.layout.parent / "layers"
    return set(store.blobs.digests()) | {p.name for p in layers.glob("?" * 24) if p.is_dir()}


def test_import_is_an_oci_layout(store: ImageStore) -> None:
    image = make(store, "app:1", created="2024-05-06T07:08:09Z")
    assert image.references == ("docker.io/library/app:1",)
    assert json.loads((store.layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.layout / "index.json").read_text())
    assert index["schemaVersion"] == 2
    entry = index["manifests"][0]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "docker.io/library/app:1"
    blobs = store.layout / "blobs/sha256"
    manifest = json.loads((blobs / entry["digest"][7:]).read_bytes())
    assert manifest["schemaVersion"] == 2 and len(manifest["layers"]) == 1
    assert manifest["mediaType"] == entry["mediaType"]
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    assert config["created"] == "2024-05-06T07:08:09Z"
    for path in blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_mode & 0o077 == 0
    again = make(store, "app:1", created="2024-05-06T07:08:09Z")
    assert again == image


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, "zstd"])
def test_import_reads_compressed_archives(store: ImageStore, compress: object) -> None:
    data = make_tar(member("f", os.urandom(3 << 18)), member("g", bytes(1 << 20))).getvalue()
    if compress == "zstd":
        packed = subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    else:
        assert callable(compress)
        half = len(data) // 2
        two = compress in (gzip.compress, bz2.compress, lzma.compress)
        packed = compress(data[:half]) + compress(data[half:]) if two else compress(data)
    image = store.import_tar(io.BytesIO(packed), "app")
    assert image.config.rootfs.diff_ids == ["sha256:" + hashlib.sha256(data).hexdigest()]
    assert image.size == (3 << 18) + (1 << 20)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive at all" * 99,
        gzip.compress(b"x" * 5000),
        gzip.compress(make_tar(member("f", os.urandom(9999))).getvalue())[:-3000],
        b"\x1f\x8bnonsense" * 9,
        b"BZhnonsense" * 9,
        b"\xfd7zXZ\0nonsense" * 9,
        b"\x28\xb5\x2f\xfdnonsense" * 9,
    ],
)
def test_a_bad_import_leaves_nothing(store: ImageStore, data: bytes) -> None:
    with pytest.raises(VmmError):
        store.import_tar(io.BytesIO(data), "bad")
    assert store.list() == []
    assert list(store.layout.glob("tmp/*")) == []
    store.prune(min_age=0)
    assert files(store) == set()


def test_a_bomb_ends_at_the_limit(store: ImageStore) -> None:
    from vmm.storage.untar import Limits

    bomb = gzip.compress(make_tar(member("f", bytes(50 << 20))).getvalue(), 9)
    with pytest.raises(VmmError, match="more than"):
        store.import_tar(io.BytesIO(bomb), "bomb", limits=Limits(content=10 << 20))
    with pytest.raises(VmmError, match="more than"):
        store.import_tar(io.BytesIO(bomb), "bomb", limits=Limits(archive=10 << 20))
    assert files(store) == set()


def test_import_errors_name_the_file(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"nothing\.tar"):
        store.import_tar(tmp_path / "nothing.tar", "x")
    with pytest.raises(UsageError):
        store.import_tar(io.BytesIO(b""), "UPPER")


def test_names_that_find_an_image(store: ImageStore) -> None:
    image = make(store, "app:1")
    found = [
        "app:1",
        "docker.io/library/app:1",
        f"app@{image.manifest_digest}",
        image.id,
        image.id[7:],
        image.id[7:19],
        image.id[:20],
    ]
    for name in found:
        assert store.resolve(name) == image, name
    fresh = ImageStore(store.layout.parent, store.driver)
    assert fresh.resolve("app:1") == image


def test_a_prefix_must_be_of_one_image(store: ImageStore) -> None:
    images = [make(store, f"app:{n}", b"%d" % n) for n in range(17)]
    first = {image.id[7] for image in images}
    shared = next(d for d in first if sum(i.id[7] == d for i in images) > 1)
    with pytest.raises(UsageError, match="ambiguous"):
        store.resolve(shared)
    for image in images:
        assert store.resolve(image.id[7:40]).id == image.id


def test_a_reference_wins_over_a_prefix(store: ImageStore) -> None:
    image = make(store, "app")
    other = make(store, image.id[7:11] + "/x", b"other")
    named = store.tag(other.id, image.id[7:11])
    assert store.resolve(image.id[7:11]).id == named.id == other.id


@pytest.mark.parametrize("name", ["nothing", "0" * 64, "sha256:" + "0" * 64, "app:2", "zz/app:1"])
def test_not_found_says_what_to_do(store: ImageStore, name: str) -> None:
    make(store, "app:1")
    with pytest.raises(NotFound) as caught:
        store.resolve(name)
    assert "vmm" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        store.resolve("busybox")
    assert "vmm image bootstrap busybox" in caught.value.hint


@pytest.mark.parametrize("name", ["../x", "sha256:../../etc/passwd", "A", "", "a\nb"])
def test_names_that_are_none(store: ImageStore, name: str) -> None:
    with pytest.raises(VmmError):
        store.resolve(name)
    with pytest.raises(VmmError):
        store.tag("x", name)


def test_a_moved_reference_leaves_the_image(store: ImageStore) -> None:
    old, new = make(store, "app", b"old"), make(store, "app", b"new")
    assert store.resolve("app").id == new.id
    assert store.resolve(old.id).references == ()
    assert {image.id for image in store.list()} == {old.id, new.id}
    assert store.tag(old.id, "app:old").references == ("docker.io/library/app:old",)
    assert store.resolve(old.id).references == ("docker.io/library/app:old",)


def test_remove_frees_exactly_what_is_not_shared(store: ImageStore) -> None:
    base = make(store, "base")
    before = files(store)
    child = build_on(store, base, "child", b"y")
    both = files(store)
    sibling = build_on(store, base, "sibling", b"z")
    lines = store.remove("sibling")
    assert lines == [
        "Untagged: sibling:latest",
        f"Deleted: {sibling.id}",
        f"Deleted: {sibling.chain_ids[-1]}",
    ]
    assert files(store) == both
    assert store.remove("base") == ["Untagged: base:latest", f"Deleted: {base.id}"]
    assert store.resolve("child") == child and store.check() == []
    assert store.driver.has(base.chain_ids[0])
    assert len(store.remove(child.id)) == 4
    assert files(store) == set() != before


def test_kept_layers_stay(store: ImageStore) -> None:
    base = make(store, "base")
    child = build_on(store, base, "child", b"y")
    store.remove("base")
    assert len(store.remove("child", keep_chain_ids=[child.chain_ids[-1]])) == 2
    assert all(store.driver.has(chain) for chain in child.chain_ids)
    blobs = [store.driver.layer(chain).blob for chain in child.chain_ids]
    assert all(blob is not None and store.blobs.has(blob.digest) for blob in blobs)
    store.prune(keep_chain_ids=[child.chain_ids[0]], min_age=0)
    assert [store.driver.has(chain) for chain in child.chain_ids] == [True, False]
    store.prune()
    assert store.driver.has(child.chain_ids[0]), "too young to be swept"
    store.prune(min_age=0)
    assert files(store) == set()


def test_remove_by_reference_and_by_id(store: ImageStore) -> None:
    image = make(store, "a:1")
    store.tag("a:1", "b:1")
    assert store.remove("a:1") == ["Untagged: a:1"]
    store.tag("b:1", "a:2")
    with pytest.raises(Conflict, match=r"must be forced.*multiple repositories"):
        store.remove(image.id[:19])
    lines = store.remove(image.id[7:19], force=True)
    assert sorted(lines[:2]) == ["Untagged: a:2", "Untagged: b:1"]
    assert lines[2] == f"Deleted: {image.id}"
    with pytest.raises(NotFound):
        store.remove(image.id)


def test_an_image_in_use_stays(store: ImageStore) -> None:
    image = make(store, "a:1")
    users = {image.id: ["web"]}
    with pytest.raises(Conflict, match=r'"a:1" \(must be forced\) - container web is using'):
        store.remove("a:1", in_use=users)
    with pytest.raises(Conflict, match=r"cannot be forced.*running container web"):
        store.remove(image.id, in_use=users, running=["web"], force=True)
    assert store.remove("a:1", in_use=users, force=True) == ["Untagged: a:1"]
    assert store.resolve(image.id).references == ()
    assert store.prune(in_use=[image.id], min_age=0).lines == []
    pruned = store.prune(min_age=0)
    assert f"Deleted: {image.id}" in pruned.lines and pruned.freed > 0
    assert files(store) == set()


def test_prune_takes_dangling_images_or_all(store: ImageStore) -> None:
    old, new = make(store, "a", b"1"), make(store, "a", b"2")
    assert f"Deleted: {old.id}" in store.prune().lines
    assert store.resolve("a") == new
    assert f"Deleted: {new.id}" in store.prune(everything=True).lines


def test_corruption_is_named(store: ImageStore) -> None:
    image, other = make(store, "a", b"1"), make(store, "b", b"2")
    assert store.verify(image) == store.check() == []
    layer = store.manifest(image).layers[0].digest
    with open(store.blobs.path(layer), "r+b") as file:
        file.write(b"!")
    assert any(layer in fault for fault in store.check())
    store.blobs.path(image.id).write_bytes(b"{}")
    fresh = ImageStore(store.layout.parent, store.driver)
    with pytest.raises(CorruptStore, match=image.id):
        fresh.resolve("a")
    assert [i.id for i in fresh.list()] == [other.id]
    assert any(image.id in fault for fault in fresh.check())
    assert fresh.resolve("b") == other
    assert fresh.remove("b")[-1] == f"Deleted: {other.id}"
    assert fresh.remove("a") == ["Untagged: a:latest"]
    assert fresh.check() == []
    fresh.prune(min_age=0)
    assert files(fresh) == set()


def test_a_missing_layer_is_named(store: ImageStore) -> None:
    image = make(store, "a")
    store.driver.remove(image.chain_ids[0])
    assert any(image.chain_ids[0] in fault for fault in store.verify(image))


def test_a_broken_index_is_named(store: ImageStore) -> None:
    make(store, "a")
    (store.layout / "index.json").write_text("[")
    with pytest.raises(CorruptStore, match=r"index\.json"):
        store.resolve("a")
    assert any("index.json" in fault for fault in store.check())


def test_huge_documents_are_not_read(store: ImageStore) -> None:
    image = make(store, "a")
    os.truncate(store.blobs.path(image.manifest_digest), 1 << 40)
    with pytest.raises(CorruptStore, match="larger"):
        ImageStore(store.layout.parent, store.driver).resolve("a")


def test_real_alpine(store: ImageStore, shared: Path) -> None:
    image = store.import_tar(shared / "images/alpine-3.20.tar.gz", "alpine:3.20")
    assert image.config.rootfs.diff_ids == [
        "sha256:1bccf10afce5c1ffe31381419930ad565c1436eaeb1ca680494b0663e0028419"
    ]
    root = store.layout.parent / "layers" / image.chain_ids[0][7:31]
    assert (root / "etc/alpine-release").read_text().startswith("3.20")
    assert store.check() == []


def test_real_busybox_layouts(store: ImageStore, shared: Path) -> None:
    glibc = store.load_layout(shared / "images/busybox-glibc", "busybox")
    assert glibc.manifest_digest.startswith("sha256:1cfa4e2b")
    assert glibc.config.config.cmd == ["sh"]
    musl = store.load_layout(shared / "images/busybox-musl")
    assert len(musl.references) == 1 and store.check() == []
    child = build_on(store, glibc, "child", b"y")
    assert store.manifest(child).layers[0] == store.manifest(glibc).layers[0]
    store.remove("busybox")
    assert store.check() == []


def damaged(shared: Path, target: Path, what: str) -> Path:
    """A copy of a real layout with one thing wrong."""
    shutil.copytree(shared / "images/busybox-glibc", target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    index = json.loads((target / "index.json").read_text())
    entry = index["manifests"][0]
    manifest_path = target / "blobs/sha256" / entry["digest"][7:]
    manifest = json.loads(manifest_path.read_text())
    layer_path = target / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    config_path = target / "blobs/sha256" / manifest["config"]["digest"][7:]
    if what == "layer":
        layer_path.write_bytes(layer_path.read_bytes()[:-1] + b"!")
    elif what == "layer link":
        layer_path.unlink()
        layer_path.symlink_to("/etc/passwd")
    elif what == "manifest":
        manifest_path.write_bytes(manifest_path.read_bytes() + b" ")
    elif what == "size":
        entry["size"] += 1
    elif what == "digest":
        entry["digest"] = "sha256:../../../../etc/passwd"
    elif what == "platform":
        entry["platform"]["architecture"] = "s390x"
    elif what == "layers in the index":
        index["layers"] = []
    else:
        config = json.loads(config_path.read_text())
        if what == "diff_id":
            config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
        else:
            config["rootfs"]["diff_ids"] = []
        manifest["config"] |= rewrite(target, json.dumps(config).encode())
        entry |= rewrite(target, json.dumps(manifest).encode())
    (target / "index.json").write_text(json.dumps(index))
    return target


def rewrite(target: Path, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (target / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


WRONGS = ["layer", "layer link", "manifest", "size", "digest", "platform", "layers in the index"]


@pytest.mark.parametrize("what", [*WRONGS, "diff_id", "number of diff_ids"])
def test_a_damaged_layout_stores_nothing(
    store: ImageStore, shared: Path, tmp_path: Path, what: str
) -> None:
    with pytest.raises(VmmError):
        store.load_layout(damaged(shared, tmp_path / "layout", what), "x")
    assert store.list() == [] and files(store) == set()


def test_an_image_of_only_directories(store: ImageStore) -> None:
    image = store.import_tar(make_tar(directory("d")), "x")
    assert image.size == 0 and len(image.chain_ids) == 1
    empty = io.BytesIO()
    with tarfile.open(fileobj=empty, mode="w"):
        pass
    empty.seek(0)
    assert store.import_tar(empty, "y").size == 0
