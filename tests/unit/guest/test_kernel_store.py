"""Kernels: recognised, added, chosen, removed; and what is no kernel."""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path
from threading import Thread

import pytest

from vmm.guest.kernelimage import read_kernel
from vmm.guest.kernels import Kernel, KernelStore
from vmm.guest.packages import add_package
from vmm.model.errors import Conflict, HostError, NotFound, UsageError
from vmm.ports.files import locked
from vmm.ports.runner import HostRunner


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(tmp_path / "kernels", boot=tmp_path / "boot", modules=tmp_path / "modules")


def changed(source: str, target: Path, at: int, data: bytes) -> Path:
    content = bytearray(Path(source).read_bytes())
    content[at : at + len(data)] = data
    target.write_bytes(content)
    return target


def test_a_fetched_kernel_knows_itself(kernel: Kernel) -> None:
    image = read_kernel(kernel.path)
    assert image.version == kernel.version == kernel.name
    assert (image.architecture, image.form) == ("amd64", "bzImage")
    assert kernel.source == "own" and Path(kernel.modules, "modules.builtin").is_file()


def test_what_is_no_kernel_is_refused(tmp_path: Path, kernel: Kernel) -> None:
    content = Path(kernel.path).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"cut: truncated: \d+ bytes of \d+"):
        read_kernel(cut)
    for name, data in {"empty": b"", "noise": bytes(range(256)) * 64, "text": b"x" * 9000}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match="not a Linux kernel"):
            read_kernel(tmp_path / name)
    with pytest.raises(UsageError, match="a directory"):
        read_kernel(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_kernel(tmp_path / "absent")
    with pytest.raises(UsageError, match="32-bit x86"):
        read_kernel(changed(kernel.path, tmp_path / "old", 0x236, b"\0\0"))
    with pytest.raises(UsageError, match="no kernel version"):
        read_kernel(changed(kernel.path, tmp_path / "odd", 0x20E, b"\0\0"))


def elf(machine: int, text: bytes = b"") -> bytes:
    """An ELF file with one segment to load, that holds ``text``."""
    head = struct.pack("<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, machine, 1, 0, 64, 0, 0,
                       64, 56, 1, 64, 0, 0)  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 8192, 8192, 4096)
    return (head + segment + text).ljust(8192, b"\0")


def test_elf_kernels_of_other_machines(tmp_path: Path, store: KernelStore) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(183, b"Linux version 6.1.0-arm (someone)"))
    assert read_kernel(path)[:2] == ("6.1.0-arm", "arm64")
    added = store.add(path)
    with pytest.raises(HostError, match="for arm64, the guest for amd64"):
        store.choose(added.name, "amd64")
    with pytest.raises(HostError, match="no amd64 kernel"):
        store.choose("", "amd64")
    assert store.choose("", "arm64") == added
    path.write_bytes(elf(8, b"Linux version 6.1.0 (someone)"))
    with pytest.raises(UsageError, match="number 8"):
        read_kernel(path)
    path.write_bytes(elf(62))
    with pytest.raises(UsageError, match="names no Linux version"):
        read_kernel(path)
    path.write_bytes(elf(62, b"Linux version 6.1.0 (someone)")[:5000])
    with pytest.raises(UsageError, match="truncated: 5000 bytes of 8192"):
        read_kernel(path)


def test_an_added_kernel_can_be_chosen_and_removed(store: KernelStore, kernel: Kernel) -> None:
    with pytest.raises(HostError, match="no amd64 kernel"):
        store.choose("", "amd64")
    added = store.add(kernel.path, kernel.modules, "mine")
    assert store.choose() == store.get("mine") == added
    assert added.version == kernel.version and added.identity == kernel.identity
    with pytest.raises(Conflict, match="a kernel mine already"):
        store.add(kernel.path, kernel.modules, "mine")
    store.remove("mine")
    assert store.list() == []
    with pytest.raises(NotFound):
        store.remove("mine")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_names_stay_inside(store: KernelStore, kernel: Kernel) -> None:
    for name in ("../x", "a/b", ".hidden", "x" * 300, "a\nb"):
        with pytest.raises(UsageError):
            store.add(kernel.path, kernel.modules, name)
        with pytest.raises(NotFound):
            store.get(name)
    assert store.list() == []


def test_modules_are_checked_when_a_kernel_is_added(
    store: KernelStore, kernel: Kernel, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"no modules of kernel {kernel.version}"):
        store.add(kernel.path, tmp_path)
    modules = tmp_path / "some"
    shutil.copytree(kernel.modules, modules)
    next(modules.rglob("virtio_blk.ko*")).unlink()
    with pytest.raises(HostError, match="lack virtio_blk"):
        store.add(kernel.path, modules)
    (modules / "modules.builtin").unlink()
    with pytest.raises(UsageError, match=r"no modules\.builtin"):
        store.add(kernel.path, modules)
    assert store.list() == []


def test_the_hosts_kernels(store: KernelStore, kernel: Kernel, tmp_path: Path) -> None:
    boot, modules = tmp_path / "boot", tmp_path / "modules"
    boot.mkdir()
    shutil.copy(kernel.path, boot / f"vmlinuz-{kernel.version}")
    (boot / "vmlinuz-broken").write_bytes(b"nothing")
    assert store.list() == []  # without its modules it is of no use
    modules.mkdir()
    (modules / kernel.version).symlink_to(kernel.modules)
    found = store.choose()
    assert (found.name, found.source) == (kernel.version, "host")
    with pytest.raises(Conflict, match="belongs to the host"):
        store.remove(found.name)
    store.add(kernel.path, kernel.modules, "own")
    assert [k.name for k in store.list()] == ["own", kernel.version]
    assert store.choose().name == "own" and store.choose(kernel.version).source == "host"
    store.add(kernel.path, kernel.modules, kernel.version)
    assert sorted((k.name, k.source) for k in store.list()) == sorted(
        [("own", "own"), (kernel.version, "own")]
    ), "a name stands for one kernel, the instance's before the host's"


def test_a_package_without_a_kernel(store: KernelStore, tmp_path: Path) -> None:
    runner = HostRunner()
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    runner.run(["dpkg-deb", "-b", str(package), str(tmp_path / "x.deb")])
    with pytest.raises(UsageError, match="without a kernel"):
        add_package(store, runner, tmp_path / "x.deb")
    (tmp_path / "y.deb").write_bytes(b"no package")
    with pytest.raises(HostError, match="dpkg-deb failed"):
        add_package(store, runner, tmp_path / "y.deb")
    assert list(store.root.glob(".new-*")) == []


def test_what_a_killed_command_left_is_no_kernel(store: KernelStore, kernel: Kernel) -> None:
    (store.root / "half").mkdir(parents=True)
    shutil.copy(kernel.path, store.root / "half" / "vmlinuz")
    (store.root / ".new-0123").mkdir()
    assert store.list() == []
    assert store.add(kernel.path, kernel.modules, "half").name == "half"


def test_a_kernel_that_is_too_old_is_not_booted(
    store: KernelStore, kernel: Kernel, tmp_path: Path
) -> None:
    boot, old = tmp_path / "boot", kernel.version.replace("6.", "5.", 1)
    boot.mkdir()
    content = Path(kernel.path).read_bytes().replace(kernel.version.encode(), old.encode())
    (boot / f"vmlinuz-{old}").write_bytes(content)
    with pytest.raises(UsageError, match=f"Linux {old} is older than 6"):
        store.add(boot / f"vmlinuz-{old}", "", "old")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / old).symlink_to(kernel.modules)
    assert [k.name for k in store.list()] == [old]
    with pytest.raises(HostError, match=f"could boot.*{old} is older"):
        store.choose()
    with pytest.raises(HostError, match=f"kernel {old}: Linux {old} is older"):
        store.choose(old)
    store.add(kernel.path, kernel.modules, "own")
    assert store.choose().name == "own"


def test_two_removals_at_once(store: KernelStore, kernel: Kernel) -> None:
    """The second one says that there is none, and does not fail halfway."""
    store.add(kernel.path, kernel.modules, "mine")
    outcomes: list[str] = []

    def remove() -> None:
        try:
            store.remove("mine")
            outcomes.append("removed")
        except NotFound:
            outcomes.append("none")

    threads = [Thread(target=remove) for _ in range(2)]
    with locked(store.root / ".lock"):
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # both have looked, and wait for the lock
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["none", "removed"]
