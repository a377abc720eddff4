"""Roots of guests on the host: who owns them, made once, removed, and what a crash leaves."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.guest.guesttrees import add_layer, write
from vmm.guest.kernels import Kernel, KernelStore
from vmm.guest.roots import DiskDriver
from vmm.model.errors import CorruptStore, HostError, UsageError
from vmm.storage.overlay import OverlayDriver

UID, GID = 64055, 64056


@pytest.fixture
def libexec(tmp_path: Path) -> Path:
    """The boot files only hold vmm-init; nothing is booted here."""
    path = tmp_path / "libexec"
    path.mkdir()
    (path / "vmm-init").write_bytes(b"\x7fELF of the first process")
    return path


@pytest.fixture
def store(tmp_path: Path) -> OverlayDriver:
    return OverlayDriver(tmp_path / "root" / "layers")


@pytest.fixture
def driver(work: Path, store: OverlayDriver, libexec: Path, fetched: KernelStore) -> DiskDriver:
    return DiskDriver(work.parents[1], store, libexec=libexec, kernels=fetched)


@pytest.fixture
def chain(store: OverlayDriver, tmp_path: Path) -> list[str]:
    return add_layer(store, [], tmp_path / "step", lambda root: write(f"{root}/file", b"x" * 9000))


def owner(path: Path | str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_only_the_disk_is_the_hypervisors_own(
    driver: DiskDriver, chain: list[str], work: Path
) -> None:
    layout = driver.prepare(chain, work, uid=UID, gid=GID)
    for path in (layout.path, layout.kernel, layout.initrd):
        assert owner(path) == (0, GID, 0o640), path
    boot = Path(layout.kernel).parent
    for directory in (driver.root, driver.directory, work, work.parent, boot.parent, boot):
        assert owner(directory) == (0, GID, 0o710), directory
    assert owner(layout.disk) == (UID, GID, 0o600)
    assert layout.driver == "disk" and layout.filesystem == "erofs"


def test_a_disk_is_large_and_takes_next_to_nothing(
    driver: DiskDriver, chain: list[str], work: Path
) -> None:
    layout = driver.prepare(chain, work, uid=UID, gid=GID)
    status = os.stat(layout.disk)
    assert status.st_size == 10 << 30 and status.st_blocks * 512 < 1 << 20
    assert driver.usage(work) == status.st_blocks * 512
    fsck = ["/sbin/e2fsck", "-f", "-n", layout.disk]
    subprocess.run(fsck, check=True, capture_output=True)
    head = subprocess.run(["/sbin/dumpe2fs", "-h", layout.disk], check=True, capture_output=True)
    reserved = re.search(rb"Reserved block count: +(\d+)", head.stdout)
    assert reserved and reserved[1] == b"0", "all of it is the workload's"


def test_repeating_it_keeps_everything_and_is_quick(
    driver: DiskDriver, chain: list[str], work: Path
) -> None:
    first = driver.prepare(chain, work, uid=UID, gid=GID)
    before = {p: os.stat(p).st_mtime_ns for p in (first.path, first.disk, first.kernel)}
    began = time.monotonic()
    assert driver.prepare(chain, work, uid=UID, gid=GID) == first
    assert time.monotonic() - began < 0.1
    assert {path: os.stat(path).st_mtime_ns for path in before} == before


def test_guests_of_one_image_share_it(driver: DiskDriver, chain: list[str], work: Path) -> None:
    other = work.parent / "two"
    other.mkdir()
    one = driver.prepare(chain, work, uid=UID, gid=GID)
    two = driver.prepare(chain, other, uid=UID, gid=GID)
    assert one.path == two.path and one.disk != two.disk
    driver.discard(work)
    assert list(work.iterdir()) == [] and os.path.exists(two.disk)


def test_an_image_goes_with_its_layers(
    driver: DiskDriver, store: OverlayDriver, chain: list[str], work: Path
) -> None:
    layout = driver.prepare(chain, work, uid=UID, gid=GID)
    assert driver.prune() == 0
    assert list(driver.images()) == chain
    size = os.stat(layout.path).st_blocks * 512
    store.remove(chain[0])
    assert driver.prune() == size and driver.images() == {}
    assert driver.remove(chain[0]) == 0


def test_images_no_guest_uses_are_pruned(driver: DiskDriver, chain: list[str], work: Path) -> None:
    driver.prepare(chain, work, uid=UID, gid=GID)
    assert driver.prune(keep=chain) == 0
    assert driver.prune(keep=[]) > 0


def test_a_running_guest_keeps_the_kernel_that_it_booted(
    work: Path, store: OverlayDriver, libexec: Path, kernel: Kernel, chain: list[str]
) -> None:
    kernels = KernelStore(work.parents[1] / "kernels", boot=work / "none")
    driver = DiskDriver(work.parents[1], store, libexec=libexec, kernels=kernels)
    kernels.add(kernel.path, kernel.modules, "first")
    booted = driver.prepare(chain, work, uid=UID, gid=GID)
    kernels.add(kernel.path, kernel.modules, "second")
    assert driver.prepare(chain, work, uid=UID, gid=GID, running=True) == booted
    assert (work / "kernel").read_text() == "first"
    driver.prepare(chain, work, uid=UID, gid=GID)
    assert (work / "kernel").read_text() == "second"


def test_an_image_that_another_version_wrote_is_not_used(
    driver: DiskDriver, store: OverlayDriver, chain: list[str], work: Path
) -> None:
    layout = driver.prepare(chain, work, uid=UID, gid=GID)
    content = Path(layout.path).read_bytes()
    for form in (".erofs", ".0.erofs"):
        other = driver.directory / f"{chain[0].removeprefix('sha256:')}{form}"
        other.write_bytes(content)
    os.unlink(layout.path)
    assert driver.prepare(chain, work, uid=UID, gid=GID) == layout
    assert len(list(driver.directory.glob("*.erofs"))) == 3
    assert driver.prune() == 0
    store.remove(chain[0])
    assert driver.prune() > 2 * len(content)
    assert list(driver.directory.glob("*.erofs")) == []


def test_damaged_images_are_pruned(driver: DiskDriver, chain: list[str], work: Path) -> None:
    layout = driver.prepare(chain, work, uid=UID, gid=GID)
    os.truncate(layout.path, 4096)
    assert len(driver.check()) == 1
    driver.prune()
    assert not os.path.exists(layout.path) and driver.check() == []


def test_an_image_without_layers(driver: DiskDriver, work: Path) -> None:
    layout = driver.prepare([], work, uid=UID, gid=GID)
    out = work / "out"
    subprocess.run(["fsck.erofs", f"--extract={out}", layout.path], check=True)
    assert {"dev", "proc", "sys", "etc"} <= set(os.listdir(out))


def test_missing_layers_are_named(driver: DiskDriver, work: Path) -> None:
    with pytest.raises(CorruptStore, match="sha256:0123"):
        driver.prepare(["sha256:" + "0123" * 16], work, uid=UID, gid=GID)
    assert list(driver.directory.glob("*.erofs*")) == []


def test_killed_while_making_an_image(
    driver: DiskDriver, store: OverlayDriver, chain: list[str], work: Path, tmp_path: Path
) -> None:
    def large(root: str) -> None:
        for number in range(3000):
            write(f"{root}/{number}", bytes(5000))

    longer = add_layer(store, chain, tmp_path / "step", large)
    code = (
        "import sys\nfrom vmm.guest.roots import DiskDriver\n"
        "from vmm.guest.kernels import KernelStore\n"
        "from vmm.storage.overlay import OverlayDriver\n"
        "root, libexec, kernels, work, *chain = sys.argv[1:]\n"
        "driver = DiskDriver(root, OverlayDriver(root + '/layers'), libexec=libexec,\n"
        "                    kernels=KernelStore(kernels))\n"
        f"driver.prepare(chain, work, uid={UID}, gid={GID})\n"
    )
    arguments = [str(driver.root), str(tmp_path / "libexec"), str(driver.kernels.root), str(work)]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments, *longer])
    while not list(driver.directory.glob("*.new")):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(driver.directory.glob("*.erofs")) == []
    assert len(driver.check()) == 1
    layout = driver.prepare(longer, work, uid=UID, gid=GID)
    assert driver.check() == []
    subprocess.run(["fsck.erofs", layout.path], check=True)


def test_several_commands_at_once_make_one_image(
    driver: DiskDriver, chain: list[str], work: Path
) -> None:
    children = []
    for number in range(4):
        directory = work.parent / f"w{number}"
        directory.mkdir()
        pid = os.fork()
        if not pid:
            try:
                driver.prepare(chain, directory, uid=UID, gid=GID)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(list(driver.directory.glob("*.erofs*"))) == 1


def test_a_new_vmm_init_gives_a_new_initramfs_and_the_old_one_goes(
    driver: DiskDriver, chain: list[str], work: Path, libexec: Path
) -> None:
    first = driver.prepare(chain, work, uid=UID, gid=GID)
    (libexec / "vmm-init").write_bytes(b"\x7fELF of another one")
    old = Path(first.initrd).parent
    os.utime(old, (1, 1))
    second = driver.prepare(chain, work, uid=UID, gid=GID)
    assert second.initrd != first.initrd
    assert not old.exists() and os.path.exists(second.initrd)


def test_emulated_guests_get_the_kernel_unpacked(
    driver: DiskDriver, chain: list[str], work: Path
) -> None:
    plain = driver.prepare(chain, work, uid=UID, gid=GID)
    unpacked = driver.prepare(chain, work, uid=UID, gid=GID, emulated=True)
    assert Path(plain.kernel).read_bytes() == Path(driver.kernels.choose().path).read_bytes()
    with open(unpacked.kernel, "rb") as file:
        assert file.read(4) == b"\x7fELF"


def test_what_is_missing_is_said(
    work: Path, store: OverlayDriver, tmp_path: Path, fetched: KernelStore, chain: list[str]
) -> None:
    root = work.parents[1]
    driver = DiskDriver(root, store, libexec=tmp_path, kernels=fetched)
    with pytest.raises(HostError, match="vmm-init is missing"):
        driver.prepare(chain, work, uid=UID, gid=GID)
    none = KernelStore(tmp_path / "none", boot=tmp_path)
    driver = DiskDriver(root, store, libexec=tmp_path, kernels=none)
    with pytest.raises(HostError, match="no amd64 kernel") as raised:
        driver.prepare(chain, work, uid=UID, gid=GID)
    assert "vmm kernel fetch" in raised.value.hint


def test_a_disk_too_small_is_refused(
    work: Path, store: OverlayDriver, libexec: Path, fetched: KernelStore, chain: list[str]
) -> None:
    driver = DiskDriver(work.parents[1], store, libexec=libexec, kernels=fetched, size=1 << 20)
    with pytest.raises(UsageError, match="too small"):
        driver.prepare(chain, work, uid=UID, gid=GID)
    assert not (work / "disk.raw").exists()


def test_a_used_disk_is_never_made_again(driver: DiskDriver, chain: list[str], work: Path) -> None:
    disk = Path(driver.prepare(chain, work, uid=UID, gid=GID).disk)
    driver.verify(work)
    whole = disk.stat().st_size
    for size, said in ((whole - 4096, "was cut"), (512, "was cut")):
        os.truncate(disk, size)
        for used in (False, True):
            with pytest.raises(CorruptStore, match=said) as caught:
                driver.prepare(chain, work, uid=UID, gid=GID, used=used)
            assert f"vmm rm {work.name[:12]}" in caught.value.hint
    os.truncate(disk, whole)
    with pytest.raises(CorruptStore, match="overwritten"):
        driver.prepare(chain, work, uid=UID, gid=GID, used=True)
    disk.unlink()
    with pytest.raises(CorruptStore, match="is gone"):
        driver.prepare(chain, work, uid=UID, gid=GID, used=True)
    assert not disk.exists()
    driver.prepare(chain, work, uid=UID, gid=GID)
    os.truncate(disk, whole + (1 << 20))  # larger than its file system is fine
    driver.prepare(chain, work, uid=UID, gid=GID, used=True)
