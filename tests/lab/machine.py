"""A machine of its own with a stock kernel, emulated: it has what a host of today has and the one
at hand may lack: KVM (QEMU emulates AMD's SVM too), cgroup2 alone, with all controllers, nftables.

Its root is the host's, read-only by virtiofs, below a tmpfs; one directory is shared for writing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab import boots
from tests.lab.boots import Boot
from vmm.guest.cpio import Cpio
from vmm.guest.modules import Modules

LAB = Path(__file__).parent
#: Of the packages qemu-system-common and virtiofsd.
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
#: What a host of vmm's loads, on demand or by udev, which are not there in the machine.
MODULES = (
    "virtio_pci", "virtiofs", "overlay", "erofs", "kvm_amd", "tun", "veth", "bridge",
    "br_netfilter", "nft_chain_nat", "nft_ct", "nft_fib_inet", "nft_masq", "nft_nat",
)  # fmt: skip
#: EPYC: a processor that libvirt knows by name, and that has what KVM wants.
CPU = "EPYC,+svm,+npt"
PARAMETERS = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check "
    "random.trust_cpu=on cryptomgr.notests"
)


def run(
    scripts: dict[str, str],
    directory: Path,
    kernel: Path,
    *,
    memory: int = 2560,
    patience: float,
    timeout: float,
) -> Boot:
    """Boot once, run the shell scripts in order, power off; AssertionError past ``timeout``.

    ``kernel`` is a kernel's directory in vmm's store. In the machine ``$SHARED`` is a directory
    below ``directory``, ``$SCRATCH`` a tmpfs, ``$PYTHON`` our own. ``memory`` is in MiB,
    ``patience`` in seconds for one script, ``timeout`` in seconds for all and the boot.
    """
    shared = boots.shared(directory, scripts)
    shutil.copy(LAB / "machine-main.sh", shared / "main")
    (shared / "environment").write_text(
        f"export LAB='{LAB}' PYTHON='{sys.executable}' PATIENCE={patience}\n"
    )
    (directory / "initrd").write_bytes(_initramfs(kernel / "modules"))
    with _sharing(directory, {"host": Path("/"), "shared": shared}) as devices:
        argv = [*_argv(memory, kernel, directory / "initrd"), *devices]
        console = _boot(argv, timeout)
    return boots.collect(shared, console)


def _initramfs(directory: Path) -> bytes:
    import io

    modules = Modules(directory)
    order = modules.ordered(MODULES)
    out = io.BytesIO()
    archive = Cpio(out)
    for path in ("dev", "bin", "modules"):
        archive.directory(path)
    archive.device("dev/console", 0o600, 5, 1)
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    archive.file("init", (LAB / "machine-init.sh").read_bytes(), 0o755)
    archive.file("modules/order", "\n".join(order).encode())
    for name in order:
        archive.file(f"modules/{name}.ko", modules.content(name))
    archive.close()
    return out.getvalue()


def _argv(memory: int, kernel: Path, initrd: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", str(memory),
        "-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on",
        "-numa", "node,memdev=memory", "-serial", "stdio", "-device", "virtio-rng-pci",
        "-kernel", str(kernel / "vmlinuz"), "-initrd", str(initrd), "-append", PARAMETERS,
    ]  # fmt: skip


@contextlib.contextmanager
def _sharing(directory: Path, shares: dict[str, Path]) -> Iterator[list[str]]:
    """A virtiofsd for each share while the block runs; the devices of QEMU for them."""
    program = next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), "")
    assert program, "install the package qemu-system-common, or virtiofsd"
    devices: list[str] = []
    with contextlib.ExitStack() as daemons:
        for tag, source in shares.items():
            socket = directory / f"{tag}.sock"
            argv = [program, f"--socket-path={socket}", "-o", f"source={source}"]
            argv += ["-o", "cache=auto", "-o", "xattr", "-o", "sandbox=chroot"]
            daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            daemons.callback(daemon.wait)
            daemons.callback(daemon.kill)
            _await(socket)
            devices += ["-chardev", f"socket,id={tag},path={socket}"]
            devices += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        yield devices


def _await(socket: Path) -> None:
    end = time.monotonic() + 10
    while not socket.exists():
        assert time.monotonic() < end, "virtiofsd does not listen"
        time.sleep(0.02)


def _boot(argv: list[str], timeout: float) -> str:
    """The console of a machine that powered off by itself."""
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(f"the machine did not end:\n{boots.text(out)}") from None
    return boots.text(out)
