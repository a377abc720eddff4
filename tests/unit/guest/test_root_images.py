"""Root images: what the format's own tools say of them, and what they cost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.guest.erofs import Written, write_image
from vmm.guest.xattrs import packed_xattrs
from vmm.model.errors import VmmError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def image_of(tree: Path, name: str = "image") -> tuple[Path, Written]:
    path = tree.parent / name
    root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    image = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return path, write_image(root, image, tree.parent)
    finally:
        os.close(root)
        os.close(image)


def extracted(image: Path) -> Path:
    out = image.parent / "out"
    subprocess.run(["fsck.erofs", f"--extract={out}", str(image)], check=True)
    return out


def sizes() -> Iterator[int]:
    yield from (0, 1, 2048, 2049, 4031, 4032, 4033, 4096, 65537, 131072, 131073)


def test_the_tools_of_the_format_read_every_size_of_file(tree: Path) -> None:
    for size in sizes():
        (tree / str(size)).write_bytes(os.urandom(size))
    image, written = image_of(tree)
    out = extracted(image)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in tree.iterdir()
    }
    assert written.inodes == 1 + len(list(sizes())) and written.size == image.stat().st_size


def test_a_directory_of_many_long_names(tree: Path) -> None:
    names = {f"{'x' * (number % 240)}{number}" for number in range(3000)}
    for name in names:
        (tree / name).touch()
    assert {p.name for p in extracted(image_of(tree)[0]).iterdir()} == names


def test_directories_with_attributes_too_long_to_keep_names_beside(tree: Path) -> None:
    for number in range(3):
        below = tree / f"d{number}"
        below.mkdir()
        os.setxattr(below, "user.long", os.urandom(3000 + 300 * number))
        for name in range(70):
            (below / f"{name:010}").write_bytes(b"x")
    image, _ = image_of(tree)
    out = extracted(image)
    assert all(len(list((out / f"d{n}").iterdir())) == 70 for n in range(3))


def test_the_same_tree_gives_the_same_bytes(tree: Path) -> None:
    for name in "bca":
        (tree / name).write_text(name)
        os.utime(tree / name, ns=(0, 1))
    first, _ = image_of(tree, "first")
    second, _ = image_of(tree, "second")
    assert first.read_bytes() == second.read_bytes()


def test_holes_of_gigantic_files_cost_neither_storage_nor_memory(tree: Path) -> None:
    with open(tree / "huge", "wb") as file:
        file.truncate(1 << 40)
        file.seek(700 << 30)
        file.write(b"in the middle")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image, _ = image_of(tree)
    assert image.stat().st_blocks * 512 < 2 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_large_files_do_not_pass_through_memory(tree: Path) -> None:
    with open(tree / "large", "wb") as file:
        for _ in range(100):
            file.write(os.urandom(1 << 20))
    code = (
        "import os, resource, sys\n"
        "from vmm.guest.erofs import write_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = os.open(sys.argv[2], os.O_RDWR|os.O_CREAT)\n"
        "write_image(os.open(sys.argv[1], os.O_RDONLY), image, '.')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    image = tree.parent / "image"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree), str(image)],
        cwd=tree.parent,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) < 16 << 10  # KiB
    assert (extracted(image) / "large").read_bytes() == (tree / "large").read_bytes()


def test_a_file_that_does_not_fit_the_format_is_named(tree: Path) -> None:
    tmpfs = tree / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmpfs)], check=True)
    try:
        with open(tmpfs / "endless", "wb") as file:
            file.truncate((1 << 63) - 1)
        with pytest.raises(VmmError, match="tmpfs/endless: 9223372036854775807 bytes are too many"):
            image_of(tree)
    finally:
        subprocess.run(["umount", str(tmpfs)], check=True)


def test_an_attribute_that_does_not_fit_is_named(tree: Path) -> None:
    tmpfs = tree / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmpfs)], check=True)
    try:
        (tmpfs / "file").touch()
        os.setxattr(tmpfs / "file", "trusted.big", bytes(65536))
        with pytest.raises(VmmError, match=r"tmpfs/file: the extended attribute trusted\.big"):
            image_of(tree)
    finally:
        subprocess.run(["umount", str(tmpfs)], check=True)


def test_notes_of_the_overlay_about_its_layers_stay_out(tree: Path) -> None:
    (tree / "a").mkdir()
    os.setxattr(tree / "a", "trusted.overlay.opaque", b"y")
    assert packed_xattrs(str(tree / "a"), "a") == b""
    os.setxattr(tree / "a", "trusted.other", b"y")
    assert b"other" in packed_xattrs(str(tree / "a"), "a")
    assert b"opaque" not in packed_xattrs(str(tree / "a"), "a")


def test_a_directory_has_the_links_of_those_below(tree: Path) -> None:
    """Two, and one for each ``..``: find(1) counts on it where it has no types of entries."""
    for path in ("two", "four/a", "four/b"):
        (tree / path).mkdir(parents=True)
    (tree / "four/file").touch()
    image, _ = image_of(tree)
    for path, links in (("/", 4), ("/two", 2), ("/four", 4), ("/four/file", 1)):
        dump = ["dump.erofs", f"--path={path}", str(image)]
        said = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
        assert f"Links: {links} " in said, said


def test_the_top_keeps_its_own_attributes(tree: Path) -> None:
    def described() -> str:
        image, _ = image_of(tree)
        return subprocess.run(
            ["dump.erofs", "--path=/", str(image)], capture_output=True, text=True, check=True
        ).stdout

    assert "Xattr size: 0" in described()
    os.setxattr(tree, "user.mark", b"value")
    assert "Xattr size: 28" in described()


def test_the_room_it_needs_is_beside_the_image(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of temporary files may be small, and of memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    (tree / "file").write_bytes(b"x" * 100)
    image, _ = image_of(tree)
    assert (extracted(image) / "file").read_bytes() == b"x" * 100


def test_a_write_that_stops_early_is_no_success(tree: Path) -> None:
    """The kernel takes what fits below the limit, as it does on a disk that is nearly full."""
    (tree / "file").write_bytes(b"x" * 50000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            image_of(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
