"""One boot: the files of an image arrive in a guest as they lie in its layers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.unit.guest.guesttrees import manifest
from vmm.guest.kernels import KernelStore
from vmm.guest.roots import DiskDriver
from vmm.model.backend import RootLayout
from vmm.storage.overlay import OverlayDriver

HERE = Path(__file__).parent
#: What makes an emulated kernel quick to boot.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
    "rcupdate.rcu_expedited=1 random.trust_cpu=on cryptomgr.notests"
)


def boot(layout: RootLayout) -> tuple[str, float]:
    """What the guest printed, and the seconds it took."""
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-m", "256", "-nodefaults"]
    argv += ["-nographic", "-no-reboot", "-serial", "stdio", "-net", "none"]
    argv += ["-kernel", layout.kernel, "-initrd", layout.initrd, "-append", COMMAND_LINE]
    argv += ["-drive", f"file={layout.path},format=raw,if=virtio,readonly=on"]
    argv += ["-drive", f"file={layout.disk},format=raw,if=virtio"]
    for device in ("virtio-rng-pci", "virtio-balloon-pci", "virtio-serial-pci"):
        argv += ["-device", device]
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, timeout=30, check=True)
    return done.stdout.decode(errors="replace"), time.monotonic() - began


def from_disk(disk: str, path: str) -> bytes:
    """A file of an ext4 disk, read without mounting it."""
    done = subprocess.run(
        [shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin") or "debugfs", "-R",
         f"cat {path}", disk], capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_files_arrive_in_a_guest_as_they_lie_in_the_layers(
    tmp_path: Path,
    work: Path,
    fetched: KernelStore,
    layers: tuple[OverlayDriver, list[str]],
) -> None:
    libexec = tmp_path / "libexec"
    libexec.mkdir()
    compiler = ["cc", "-O2", "-static", "-Wall", "-Werror", "-Wno-format-truncation"]
    init = [str(HERE / "guest-init.c"), "-o", str(libexec / "vmm-init")]
    subprocess.run([*compiler, *init], check=True)
    store, chain = layers
    driver = DiskDriver(work.parents[1], store, libexec=libexec, kernels=fetched)
    layout = driver.prepare(chain, work, uid=os.getuid(), gid=os.getgid(), emulated=True)
    view = store.view(RootLayout(driver="overlay", layers_dir=layout.layers_dir,
                                 lowers=layout.lowers))  # fmt: skip
    try:
        expected = manifest(view)
    finally:
        os.close(view)

    printed, seconds = boot(layout)

    assert "FAILED" not in printed and "DONE" in printed, printed
    assert sorted(from_disk(layout.disk, "/manifest").decode().splitlines()) == expected
    assert len(expected) > 700
    assert from_disk(layout.disk, "/upper/sizes/1").endswith(b"changed")
    assert "clean" in _checked(layout.disk)
    assert seconds < 10, printed


def _checked(disk: str) -> str:
    argv = [shutil.which("e2fsck", path="/usr/sbin:/sbin:/usr/bin") or "e2fsck", "-n", disk]
    return subprocess.run(argv, capture_output=True, check=True).stdout.decode()
