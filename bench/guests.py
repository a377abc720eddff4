"""Guests: from the command to the first line of output, beside virsh and plain qemu, in one run.

All three boot the same kernel, initramfs, machine type, memory and devices, and run the same
command of the same image; a small peer plays the monitor's part for the other two.  Also printed:
the rate of the first conversion of an image, and what a guest takes of disk and memory.
Run as root, with no other libvirtd: ``make bench-guests``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unit.native.guestlab import Peer
from vmm.control import frames

ROUNDS = int(os.environ.get("ROUNDS", "7"))
NAMESPACE = f"vmmbench-{os.getpid()}"
ENTER = ["nsenter", f"--net=/run/netns/{NAMESPACE}"]
URI = "qemu:///system"
_MAPPING = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<rights>\S{4}) \S+ \S+ \S+ *(?P<path>.*)"
)
RUN = ("--backend", "qemu", "--network", "none", "busybox", "echo", "first line")


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="vmm-bench-", dir="/var/tmp"))
    work.chmod(0o711)
    program = str(Path(sys.executable).with_name("vmm"))
    vmm = [*ENTER, program, "--root", str(work / "root")]
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        subprocess.run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"], check=True)
        quiet(*vmm, "system", "libvirt", "start")
        quiet(*vmm, "image", "bootstrap", "busybox")
        quiet(*vmm[len(ENTER) :], "kernel", "fetch")
        run(vmm, work)
    finally:
        subprocess.run([*vmm, "rm", "-f", "model", "idle"], capture_output=True, check=False)
        subprocess.run([*vmm, "system", "libvirt", "stop"], check=False)
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)
        shutil.rmtree(work, ignore_errors=True)


def quiet(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def run(vmm: list[str], work: Path) -> None:
    print(f"{ROUNDS} rounds; load {os.getloadavg()[0]:.2f}; Linux {os.uname().release}")
    quiet(*vmm, "run", "--rm", *RUN)  # the root image, the template of disks, page cache
    quiet(*vmm, "create", "--name", "model", *RUN)
    quiet(*vmm, "start", "-a", "model")
    model = Model(vmm, work)
    contenders: dict[str, Callable[[], float]] = {
        "vmm run --backend qemu": lambda: first_byte([*vmm, "run", "--rm", *RUN]),
        "virsh start": model.by_virsh,
        "plain qemu": model.by_qemu,
    }
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):  # in turn, so that all see the same load
        for name, contend in contenders.items():
            walls[name].append(contend())
    model.forget()
    print(f"{'to the first line of output':34} {'min':>8} {'median':>8} {'max':>8}   (ms)")
    for name, found in walls.items():
        shown = [1000 * value for value in (min(found), statistics.median(found), max(found))]
        print(f"{name:34} {shown[0]:8.0f} {shown[1]:8.0f} {shown[2]:8.0f}")
    for name in ("virsh start", "plain qemu"):
        ratios = sorted(
            a / b for a, b in zip(walls["vmm run --backend qemu"], walls[name], strict=True)
        )
        middle = statistics.median(ratios)
        print(f"ratio to {name:25} {ratios[0]:8.2f} {middle:8.2f} {ratios[-1]:8.2f}")
    sizes(vmm, work)


def first_byte(argv: list[str]) -> float:
    """Seconds from the start of a command to the first byte of its output."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), "no output"
        took = time.perf_counter() - begin
        process.stdout.read()
    assert process.returncode == 0
    return took


class Model:
    """The guest that vmm made, started by others."""

    def __init__(self, vmm: list[str], work: Path) -> None:
        found = json.loads(quiet(*vmm, "inspect", "model"))[0]["Id"]
        directory = work / "root/workloads" / found
        self.plan = _inside((directory / "launch.plan").read_bytes())
        self.xml = (directory / "domain.xml").read_text()
        self.place = work / "peer"
        self.place.mkdir()
        self.place.chmod(0o711)
        self.channel = self.place / "channel.sock"
        self.disk = self.place / "disk.raw"
        quiet("cp", "--sparse=always", str(directory / "disk.raw"), str(self.disk))
        status = (directory / "disk.raw").stat()
        self.owner = (status.st_uid, status.st_gid)
        os.chown(self.disk, *self.owner)
        self.name = f"bench-{os.getpid()}"
        self._define()

    def _define(self) -> None:
        text = re.sub(r"<name>.*?</name>", f"<name>{self.name}</name>", self.xml)
        text = re.sub(r"<uuid>.*?</uuid>", f"<uuid>{uuid.uuid4()}</uuid>", text)
        text = re.sub(
            r"(mode='connect' path|path)=(['\"])[^'\"]*\.sock\2", rf"\1='{self.channel}'", text
        )
        text = re.sub(r"file=(['\"])[^'\"]*disk\.raw\1", f"file='{self.disk}'", text)
        (self.place / "domain.xml").write_text(text)
        quiet(*ENTER, "virsh", "-c", URI, "define", str(self.place / "domain.xml"))

    def forget(self) -> None:
        quiet(*ENTER, "virsh", "-c", URI, "undefine", self.name)

    def by_virsh(self) -> float:
        with self._listening() as listener:
            begin = time.perf_counter()
            with subprocess.Popen(
                [*ENTER, "virsh", "-c", URI, "start", self.name], stdout=subprocess.DEVNULL
            ):
                self._first_line(listener)
                took = time.perf_counter() - begin
        subprocess.run(
            [*ENTER, "virsh", "-c", URI, "destroy", self.name], capture_output=True, check=False
        )
        return took

    def by_qemu(self) -> float:
        with self._listening() as listener:
            begin = time.perf_counter()
            with subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL) as process:
                self._first_line(listener)
                took = time.perf_counter() - begin
                process.kill()
        return took

    def _one(self, pattern: str) -> str:
        found = re.search(pattern, self.xml)
        assert found, pattern
        return found[1].replace("&amp;", "&")

    def _argv(self) -> list[str]:
        """The domain's devices, at the same places of the bus."""
        memory = int(self._one(r"<memory unit=.KiB.>(\d+)<")) // 1024
        root = self._one(r"file=['\"]([^'\"]*\.(?:erofs|ext4))['\"]")
        return [
            self._one(r"<emulator>(.*?)<"),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", self._one(r"machine=['\"](.*?)['\"]") + ",usb=off,vmport=off",
            "-accel", "tcg", "-cpu", "qemu64", "-m", str(memory), "-smp", "1",
            "-kernel", self._one(r"<kernel>(.*?)<"), "-initrd", self._one(r"<initrd>(.*?)<"),
            "-append", self._one(r"<cmdline>(.*?)<"), "-serial", "null",
            "-drive", f"if=none,id=root,format=raw,readonly=on,file={root}",
            "-device", "virtio-blk-pci,drive=root,serial=root,addr=0x2",
            "-drive", f"if=none,id=disk,format=raw,discard=unmap,file={self.disk}",
            "-device", "virtio-blk-pci,drive=disk,serial=disk,addr=0x3",
            "-chardev", f"socket,id=channel,path={self.channel}",
            "-device", "virtio-serial-pci,addr=0x4",
            "-device", "virtserialport,chardev=channel,name=org.vmm.control.0",
            "-device", "virtio-balloon-pci,addr=0x7", "-device", "virtio-rng-pci,addr=0x8",
        ]  # fmt: skip

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        self.channel.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.channel))
            os.chown(self.channel, *self.owner)
            listener.listen(1)
            listener.settimeout(60)
            yield listener

    def _first_line(self, listener: socket.socket) -> None:
        """Play the monitor until the workload's output comes."""
        connection, _ = listener.accept()
        with connection:
            peer = Peer(connection)
            peer.sync(60)
            peer.launch(self.plan)
            peer.until(lambda: peer.streams[0, frames.STDOUT], 60)


def _inside(plan: bytes) -> bytes:
    """The part of a plan that goes to the guest: all but the section ``shim``."""
    from vmm.model.launch import MAGIC, encode_record

    at = plan.index(encode_record(("section", "host")))
    return MAGIC + plan[at:]


def sizes(vmm: list[str], work: Path) -> None:
    """Disk and memory of an idle guest, and the first conversion of an image of 200 MB."""
    quiet(*vmm, "run", "-d", "--name", "idle", "-m", "256m", "--backend", "qemu", "busybox",
          "sleep", "100000")  # fmt: skip
    state = json.loads(quiet(*vmm, "inspect", "idle"))[0]
    disk = (work / "root/workloads" / state["Id"] / "disk.raw").stat().st_blocks // 2
    print(f"{'disk of a guest, before writes':34} {disk:8} KiB")
    time.sleep(3)
    pids = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _is_emulator(p, state["Id"])]
    parts: Counter[str] = Counter()
    for path in pids:
        parts += _memory(int(path.parent.name), 256 << 10)
    print(f"{'memory of an idle guest of 256 MiB':34} {parts.total() >> 10:8} MiB (QEMU, PSS)")
    for part, size in parts.most_common():
        print(f"  {part:32} {size >> 10:8} MiB")
    quiet(*vmm, "rm", "-f", "idle")
    tree = work / "tree"
    tree.mkdir()
    for number in range(2000):
        (tree / f"file{number}").write_bytes(os.urandom(100_000))
    archive = work / "tree.tar"
    quiet("tar", "-C", str(tree), "-cf", str(archive), ".")
    quiet(*vmm, "import", str(archive), "big")
    argv = ("create", "--backend", "qemu", "--name", "model2", "big", "x")
    begin = time.perf_counter()
    quiet(*vmm, *argv)
    took = time.perf_counter() - begin
    quiet(*vmm, "rm", "model2")
    begin = time.perf_counter()
    quiet(*vmm, *argv)
    again = time.perf_counter() - begin
    quiet(*vmm, "rm", "model2")
    print(f"{'first conversion of 200 MB':34} {200 / (took - again):8.0f} MB/s")


def _is_emulator(path: Path, workload: str) -> bool:
    try:
        return workload[:12].encode() in path.read_bytes() and b"vmm-shim" not in path.read_bytes()
    except OSError:
        return False


def _memory(pid: int, guest: int) -> Counter[str]:
    """KiB of each kind (proc_pid_smaps(5)); ``guest`` KiB are the size of the guest's memory."""
    found: Counter[str] = Counter()
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := _MAPPING.match(line):
            size = (int(mapping["end"], 16) - int(mapping["start"], 16)) >> 10
            kind = _kind(mapping["rights"], mapping["path"], size == guest)
        elif line.startswith("Pss:"):
            found[kind] += int(line.split()[1])
    return found


def _kind(rights: str, path: str, guests: bool) -> str:
    if guests:
        return "the guest's own"
    if "w" in rights and "x" in rights:
        return "translated code"
    return "files, kept once for all guests" if path.startswith("/") else "QEMU's own"


if __name__ == "__main__":
    main()
