"""Volumes: made once, filled once, removed with care."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.model.errors import Conflict, NotFound, UsageError
from vmm.storage.volumes import VolumeStore


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path / "root")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    data = tmp_path / "image/var/data"
    (data / "sub").mkdir(parents=True)
    (data / "sub/file").write_text("from the image")
    os.utime(data / "sub/file", ns=(5, 10**18))
    os.chown(data / "sub/file", 12, 34)
    os.chmod(data / "sub/file", 0o4751)
    os.link(data / "sub/file", data / "hard")
    os.symlink("/etc/passwd", data / "soft")
    os.mkfifo(data / "pipe")
    os.setxattr(data / "sub", "user.note", b"hi")
    os.chown(data, 33, 33)
    os.chmod(data, 0o2770)
    os.symlink("/var/data", tmp_path / "image/link")
    os.symlink("../../../../../../../../etc", tmp_path / "image/escape")
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_create_and_inspect(volumes: VolumeStore) -> None:
    made = volumes.create("db", {"a": "b"})
    assert volumes.inspect("db") == made == volumes.create("db")
    assert (made.labels, made.anonymous, made.driver) == ({"a": "b"}, False, "local")
    assert stat.S_IMODE(volumes.data("db").stat().st_mode) == 0o755
    assert stat.S_IMODE(volumes.data("db").parent.stat().st_mode) == 0o700
    anonymous = volumes.create()
    assert anonymous.anonymous and len(anonymous.name) == 64
    assert [v.name for v in volumes.list()] == sorted(["db", anonymous.name])


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "", "x" * 129, "a\n", ".hidden", "..%2f"])
def test_names_are_checked(volumes: VolumeStore, name: str) -> None:
    with pytest.raises(UsageError):
        volumes.inspect(name)
    if name:
        with pytest.raises(UsageError):
            volumes.create(name)


def test_a_new_volume_starts_with_the_images_files(volumes: VolumeStore, image: int) -> None:
    volumes.create("v")
    assert volumes.fill("v", image, "/var/data")
    data = volumes.data("v")
    root, file = data.stat(), (data / "sub/file").stat()
    assert (root.st_uid, root.st_gid, stat.S_IMODE(root.st_mode)) == (33, 33, 0o2770)
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (12, 34, 0o4751)
    assert file.st_mtime_ns == 10**18
    assert (data / "hard").stat().st_ino == file.st_ino
    assert os.readlink(data / "soft") == "/etc/passwd"
    assert stat.S_ISFIFO((data / "pipe").lstat().st_mode)
    assert os.getxattr(data / "sub", "user.note") == b"hi"
    assert sorted(os.listdir(data.parent)) == ["_data", "volume.json"]


def test_a_used_volume_is_not_filled_again(volumes: VolumeStore, image: int) -> None:
    volumes.create("v")
    (volumes.data("v") / "mine").write_text("x")
    assert not volumes.fill("v", image, "/var/data")
    assert os.listdir(volumes.data("v")) == ["mine"]


def test_links_in_the_image_stay_in_the_image(volumes: VolumeStore, image: int) -> None:
    volumes.create("v")
    assert volumes.fill("v", image, "/link")
    assert "sub" in os.listdir(volumes.data("v"))
    volumes.create("w")
    assert not volumes.fill("w", image, "/escape")
    assert not volumes.fill("w", image, "/missing")
    assert not volumes.fill("w", image, "/var/data/hard")
    assert os.listdir(volumes.data("w")) == []


def test_remove(volumes: VolumeStore) -> None:
    volumes.create("v")
    (volumes.data("v") / "f").write_text("x")
    with pytest.raises(Conflict, match="web"):
        volumes.remove("v", in_use=["web"])
    volumes.remove("v")
    with pytest.raises(NotFound):
        volumes.remove("v")
    assert [name for name in os.listdir(volumes.root) if not name.startswith(".")] == []


def test_prune_takes_only_anonymous_ones(volumes: VolumeStore) -> None:
    volumes.create("named")
    used, unused = volumes.create(), volumes.create()
    (volumes.data(unused.name) / "f").write_bytes(bytes(1000))
    assert volumes.prune({used.name}) == ([unused.name], 1000)
    assert volumes.prune({used.name}, everything=True) == (["named"], 0)
    assert [v.name for v in volumes.list()] == [used.name]


def test_what_a_crash_leaves_is_removed(volumes: VolumeStore) -> None:
    volumes.create("v")
    (volumes.root / ".removed-1" / "deep").mkdir(parents=True)
    (volumes.root / "v" / "_fill-1" / "deep").mkdir(parents=True)
    (volumes.root / "half" / "_data").mkdir(parents=True)
    assert [v.name for v in volumes.list()] == ["v"]
    volumes.prune_temporary()
    assert sorted(os.listdir(volumes.root)) == [".lock", "v"]
    assert sorted(os.listdir(volumes.root / "v")) == ["_data", "volume.json"]
