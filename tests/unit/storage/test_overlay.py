"""Layers and roots: applied, adopted, mounted, removed, and what a crash leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.storage.tars import directory, hard_link, make_tar, member, symlink
from vmm.model.backend import RootLayout
from vmm.model.errors import CorruptStore, VmmError
from vmm.model.image import Layer
from vmm.storage.difftar import diff_tar
from vmm.storage.layers import chain_id
from vmm.storage.overlay import OverlayDriver
from vmm.storage.tree import remove_tree
from vmm.storage.untar import extract


class Memory:
    """A blob sink that keeps the last blob."""

    def __init__(self) -> None:
        self.data = b""

    @contextlib.contextmanager
    def writer(self) -> Iterator[Memory]:
        self.data = b""
        yield self

    def write(self, data: bytes, /) -> None:
        self.data += data

    def commit(self) -> tuple[str, int]:
        return "sha256:" + hashlib.sha256(self.data).hexdigest(), len(self.data)


@pytest.fixture
def driver(tmp_path: Path) -> OverlayDriver:
    return OverlayDriver(tmp_path / "layers")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


BASE = (directory("etc"), member("etc/a", b"one"), member("etc/b", b"two"), directory("d/e"))


def base(driver: OverlayDriver) -> Layer:
    return driver.apply(make_tar(*BASE))


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def write(root: int, name: str, text: str = "", mode: int = 0o644) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode, dir_fd=root)
    os.write(fd, text.encode())
    os.close(fd)


def read(root: int, name: str) -> str:
    with open(os.open(name, os.O_RDONLY, dir_fd=root)) as file:
        return file.read()


def listing(driver: OverlayDriver, layout: RootLayout) -> list[str]:
    with opened(driver.view(layout)) as view:
        return sorted(os.listdir(view))


def test_apply_names_and_measures(driver: OverlayDriver) -> None:
    archive = make_tar(*BASE)
    layer = driver.apply(archive)
    assert layer.diff_id == "sha256:" + hashlib.sha256(archive.getvalue()).hexdigest()
    assert layer.chain_id == layer.diff_id
    assert (layer.size, layer.blob.size if layer.blob else 0) == (6, len(archive.getvalue()))
    again = driver.apply(make_tar(*BASE))
    assert again == layer
    upper = driver.apply(make_tar(member("x")), layer.chain_id)
    assert upper.chain_id == chain_id(layer.chain_id, upper.diff_id) != upper.diff_id
    assert driver.ancestry(upper.chain_id) == [layer.chain_id, upper.chain_id]
    assert sorted(layer.chain_id for layer in driver.layers()) == sorted(
        (layer.chain_id, upper.chain_id)
    )
    assert driver.check() == []


def test_a_wrong_digest_stores_nothing(driver: OverlayDriver) -> None:
    with pytest.raises(CorruptStore, match="digest"):
        driver.apply(make_tar(*BASE), diff_id="sha256:" + "0" * 64)
    assert driver.layers() == []
    assert os.listdir(driver.root / "tmp") == []


def test_a_hostile_layer_leaves_nothing(driver: OverlayDriver) -> None:
    with pytest.raises(VmmError):
        driver.apply(make_tar(*BASE, member("../x")))
    assert os.listdir(driver.root / "tmp") == []
    assert set(os.listdir(driver.root)) <= {"lock", "tmp"}


def test_root_is_copy_on_write(driver: OverlayDriver, work: Path) -> None:
    layer = base(driver)
    layout = driver.prepare([layer.chain_id], work)
    with opened(driver.writable_view(layout)) as root:
        os.unlink("etc/a", dir_fd=root)
        write(root, "etc/new", "three")
    with opened(driver.view(layout)) as view:
        with opened(os.open("etc", os.O_RDONLY, dir_fd=view)) as etc:
            assert {"b", "new"} <= set(os.listdir(etc)) and "a" not in os.listdir(etc)
        with pytest.raises(OSError):
            write(view, "etc/no")
    assert driver.usage(layout.upper) == 5
    other = work / "other"
    other.mkdir()
    with opened(driver.view(driver.prepare([layer.chain_id], other))) as view:
        assert read(view, "etc/a") == "one"


def test_prepare_repeats_without_change(driver: OverlayDriver, work: Path) -> None:
    layer = base(driver)
    layout = driver.prepare([layer.chain_id], work)
    with opened(driver.writable_view(layout)) as root:
        write(root, "kept")
    assert driver.prepare([layer.chain_id], work) == layout
    assert "kept" in listing(driver, layout)
    driver.discard(work)
    assert os.listdir(work) == []


def test_mount_points_are_not_part_of_the_difference(driver: OverlayDriver, work: Path) -> None:
    layer = driver.apply(make_tar(directory("etc", 0o711, uid=3, mtime=1234), member("etc/hosts")))
    layout = driver.prepare([layer.chain_id], work)
    with opened(driver.view(layout)) as view:
        assert {"dev", "proc", "sys", "etc"} <= set(os.listdir(view))
        status = os.stat("etc", dir_fd=view)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o711, 3)
        assert os.readlink("etc/mtab", dir_fd=view) == "/proc/mounts"
        for name in ("dev/pts", "dev/shm", "dev/mqueue"):
            assert stat.S_ISDIR(os.stat(name, dir_fd=view).st_mode)
        for name in ("dev/console", "etc/hostname", "etc/resolv.conf"):
            assert os.stat(name, dir_fd=view).st_size == 0
    assert driver.adopt(layout.upper, layer.chain_id, Memory()) is None


def test_odd_things_in_the_image_are_left_alone(driver: OverlayDriver, work: Path) -> None:
    layer = driver.apply(
        make_tar(
            symlink("etc", "/nowhere"),
            symlink("proc", "/"),
            member("dev", kind=tarfile.FIFOTYPE),
            member("sys", b"a file"),
        )
    )
    layout = driver.prepare([layer.chain_id], work)
    with opened(driver.view(layout)) as view:
        assert os.readlink("etc", dir_fd=view) == "/nowhere"
        assert os.readlink("proc", dir_fd=view) == "/"
        assert stat.S_ISFIFO(os.stat("dev", dir_fd=view).st_mode)
        assert read(view, "sys") == "a file"
        assert sorted(os.listdir(view)) == ["dev", "etc", "proc", "sys"]


def test_an_empty_image_has_a_root_too(driver: OverlayDriver, work: Path) -> None:
    layout = driver.prepare([], work)
    assert listing(driver, layout) == ["dev", "etc", "proc", "sys"]
    with opened(driver.writable_view(layout)) as root:
        write(root, "hello", "hi")
    layer = driver.adopt(layout.upper, None, Memory())
    assert layer is not None and layer.chain_id == layer.diff_id


def test_the_root_directory_looks_like_the_images(driver: OverlayDriver, work: Path) -> None:
    layer = driver.apply(make_tar(directory(".", 0o750, gid=9), member("f")))
    upper = driver.apply(make_tar(member("g")), layer.chain_id)
    layout = driver.prepare([layer.chain_id, upper.chain_id], work)
    with opened(driver.view(layout)) as view:
        status = os.fstat(view)
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o750, 9)


def test_adopt_and_apply_agree(driver: OverlayDriver, work: Path, tmp_path: Path) -> None:
    """What a layer's tar says is what its directory is: unpacked elsewhere it is the same."""
    layer = base(driver)
    layout = driver.prepare([layer.chain_id], work)
    with opened(driver.writable_view(layout)) as root:
        os.unlink("etc/a", dir_fd=root)
        os.rmdir("d/e", dir_fd=root)
        os.mkdir("d/e", dir_fd=root)  # replaced: opaque
        write(root, "d/e/f", "x" * 3000, 0o4755)
        os.link("d/e/f", "hard", src_dir_fd=root, dst_dir_fd=root)
        os.symlink("d", "soft", dir_fd=root)
        os.mkfifo("pipe", dir_fd=root)
        write(root, "n" * 200)
        fd = os.open("d/e/f", os.O_RDONLY, dir_fd=root)
        os.setxattr(fd, "user.note", b"a\0b")
        os.setxattr(fd, "security.capability", b"\x01\0\0\x02\0\x04\0\0" + bytes(12))
        os.close(fd)
        os.chown("d", 5, 2_500_000, dir_fd=root)
    sink = Memory()
    made = driver.adopt(layout.upper, layer.chain_id, sink)
    assert made is not None and made.size == 3000
    assert not os.path.exists(layout.upper)
    with tarfile.open(fileobj=io.BytesIO(sink.data)) as tar:
        names = tar.getnames()
    assert "etc/.wh.a" in names and "d/e/.wh..wh..opq" in names
    assert os.path.getsize(driver.root / made.chain_id[7:31] / "d/e/f") == 3000

    elsewhere = OverlayDriver(tmp_path / "elsewhere")
    copy = elsewhere.apply(make_tar(*BASE))
    other = elsewhere.apply(io.BytesIO(sink.data), copy.chain_id, diff_id=made.diff_id)
    assert (other.chain_id, other.size) == (made.chain_id, made.size)
    again = Memory()
    with opened(os.open(elsewhere.root / other.chain_id[7:31], os.O_RDONLY)) as fd:
        diff_tar(fd, again)
    assert again.data == sink.data


def test_tar_is_readable_by_tar(driver: OverlayDriver, work: Path, tmp_path: Path) -> None:
    archive = make_tar(member("a" * 150, b"x" * 700), hard_link("h", "a" * 150), symlink("s", "a"))
    (tmp_path / "in").mkdir()
    sink = Memory()
    with opened(os.open(tmp_path / "in", os.O_RDONLY)) as fd:
        extract(archive, fd)
        diff_tar(fd, sink)
    done = subprocess.run(["tar", "tvf", "-"], input=sink.data, capture_output=True, check=True)
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 3


def test_names_of_whiteouts_are_refused(driver: OverlayDriver, work: Path) -> None:
    layout = driver.prepare([], work)
    with opened(driver.writable_view(layout)) as root:
        write(root, ".wh.x")
    with pytest.raises(VmmError, match=r"\.wh\."):
        driver.adopt(layout.upper, None, Memory())
    assert os.path.exists(layout.upper)


def test_127_layers(driver: OverlayDriver, work: Path) -> None:
    chain = None
    chains = []
    for number in range(127):
        chain = driver.apply(
            make_tar(member(f"f{number}", b"x"), member("top", b"%d" % number)), chain
        ).chain_id
        chains.append(chain)
    layout = driver.prepare(chains, work)
    options = ":".join(layout.lowers) + layout.upper + layout.work
    assert len(options) + len("lowerdir=,upperdir=,workdir=") < 4096
    with opened(driver.writable_view(layout)) as root:
        assert read(root, "top") == "126"
        write(root, "more")
    names = listing(driver, layout)
    assert {f"f{number}" for number in range(127)} | {"more"} <= set(names)
    with pytest.raises(VmmError, match="127"):
        driver.apply(make_tar(member("x")), chain)


def test_removal_takes_the_mount_points_along(driver: OverlayDriver, work: Path) -> None:
    layer = base(driver)
    driver.prepare([layer.chain_id], work)
    assert driver.remove(layer.chain_id) == 6
    assert sorted(os.listdir(driver.root)) == ["lock", "tmp"]
    assert driver.remove(layer.chain_id) == 0
    with pytest.raises(CorruptStore, match="missing"):
        driver.prepare([layer.chain_id], work)


def test_damage_is_named(driver: OverlayDriver) -> None:
    layer = base(driver)
    upper = driver.apply(make_tar(member("x")), layer.chain_id)
    remove_tree(str(driver.root / layer.chain_id[7:31]))
    assert any(layer.chain_id in fault for fault in driver.check())
    (driver.root / f"{upper.chain_id[7:31]}.json").write_text("{")
    assert len(driver.check()) == 2
    with pytest.raises(CorruptStore):
        driver.layer(upper.chain_id)


def test_another_layers_place_is_never_taken(driver: OverlayDriver) -> None:
    layer = base(driver)
    twin = layer.chain_id[:31] + "0" * 40
    with pytest.raises(CorruptStore, match="has its place"):
        driver.layer(twin)


APPLY = """
import io, sys
from vmm.storage.overlay import OverlayDriver
class Slow(io.FileIO):
    def read(self, size=-1):
        data = super().read(min(size, 512))
        if not data:
            print("all read", flush=True)
            sys.stdin.read()
        return data
OverlayDriver(sys.argv[1]).apply(Slow(sys.argv[2]))
"""


def test_a_killed_command_leaves_what_prune_removes(driver: OverlayDriver, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(make_tar(*BASE).getvalue())
    argv = [sys.executable, "-c", APPLY, str(driver.root), str(tmp_path / "layer.tar")]
    repo = Path(__file__).parents[3]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, cwd=repo) as process:
        assert process.stdout is not None and process.stdout.readline() == b"all read\n"
        assert len(os.listdir(driver.root / "tmp")) == 1
        assert driver.prune_temporary() == 0, "a living command's directory was taken"
        process.send_signal(signal.SIGKILL)
    assert driver.layers() == [] and driver.check() == []
    assert driver.prune_temporary() == 1
    assert os.listdir(driver.root / "tmp") == []


def test_a_layer_without_record_is_made_again(driver: OverlayDriver) -> None:
    layer = base(driver)
    os.unlink(driver.root / f"{layer.chain_id[7:31]}.json")
    os.unlink(driver.root / layer.chain_id[7:31] / "etc/a")
    assert not driver.has(layer.chain_id)
    assert base(driver) == layer
    assert (driver.root / layer.chain_id[7:31] / "etc/a").read_text() == "one"
    os.unlink(driver.root / f"{layer.chain_id[7:31]}.json")
    assert driver.prune_temporary() == 1
    assert sorted(os.listdir(driver.root)) == ["lock", "tmp"]


def test_nothing_is_seen_on_the_host(driver: OverlayDriver, work: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    layout = driver.prepare([base(driver).chain_id], work)
    with opened(driver.view(layout)), opened(driver.writable_view(layout)):
        assert Path("/proc/self/mountinfo").read_text() == before


def test_starting_again_is_quick(driver: OverlayDriver, work: Path) -> None:
    layer = base(driver)
    driver.prepare([layer.chain_id], work)
    start = time.process_time()
    for _ in range(100):
        driver.prepare([layer.chain_id], work)
    assert (time.process_time() - start) / 100 < 0.001
