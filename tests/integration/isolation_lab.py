"""What the tests of isolation share: a program that attacks, images made to harm."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.instance import Instance

SOURCE = Path(__file__).with_name("isolation_probe.c")
LIBEXEC = Path(__file__).parents[2] / "vmm" / "libexec"
#: What every made image holds; busybox is added as a file.
LINKS = (
    "sh",
    "cat",
    "id",
    "ls",
    "grep",
    "sleep",
    "true",
    "touch",
    "head",
    "mkdir",
    "echo",
    "mount",
)
QUIET = ("--network", "none")


@functools.cache
def probe(directory: Path) -> Path:
    """The attacking program, static, compiled once into ``directory``."""
    directory.mkdir(exist_ok=True)
    made = directory / "probe"
    command = ["cc", "-static", "-O1", "-Wall", "-Wextra", "-o", str(made), str(SOURCE)]
    subprocess.run(command, check=True, timeout=50)
    return made


class Lab:
    """One instance, the probe, and the host's files that must never change."""

    def __init__(self, vmm: Instance, directory: Path) -> None:
        self.vmm = vmm
        self.images: list[str] = []
        self.directory = directory
        self.probe = probe(vmm.root.parent / "isolation")
        self.mount = ("-v", f"{self.probe}:/probe:ro")
        self.canary = directory / "canary"
        self.canary.mkdir(mode=0o755)
        (self.canary / "secret").write_text("host only\n")
        for name in ("hosts", "hostname", "resolv.conf", "passwd", "group", "null", "shm"):
            (self.canary / name).write_text("host's\n")
        self.before = fingerprint(self.canary)

    def sh(self, script: str, *options: str, image: str = "busybox", check: bool = True) -> str:
        """Output of a shell script in a new workload, with the probe at /probe."""
        argv = ["run", "--rm", *QUIET, *self.mount, *options, image, "sh", "-c", script]
        done = self.vmm.run(*argv, check=check)
        return done.stdout

    def start(self, name: str, script: str, *options: str, image: str = "busybox") -> str:
        """A workload in the background; its id."""
        options = ("--name", name, *QUIET, *self.mount, *options)
        return self.vmm.out("run", "-d", *options, image, "sh", "-c", script)

    def make(self, name: str, tree: Mapping[str, str | bytes | tarfile.TarInfo]) -> str:
        """An image of busybox and ``tree``: text beginning with ``->`` is a symbolic link."""
        path = self.directory / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            taken = {entry.split("/")[0] for entry in tree}
            for plain in ("bin", "tmp", "etc", "proc", "sys", "dev", "mnt"):
                if plain not in taken or any(e.startswith(f"{plain}/") for e in tree):
                    _add(tar, plain, _directory())
            tar.add("/bin/busybox", "bin/busybox")
            for link in LINKS:
                _add(tar, f"bin/{link}", "->busybox")
            for entry, content in tree.items():
                _add(tar, entry, content)
        self.vmm.run("image", "import", str(path), name)
        self.images.append(name)
        return name

    def unharmed(self) -> bool:
        """Whether the host's files are as they were, with nothing mounted over or beside them."""
        mounts = Path("/proc/self/mountinfo").read_text()
        return fingerprint(self.canary) == self.before and str(self.canary) not in mounts


def _directory() -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def special(kind: bytes, major: int = 0, minor: int = 0, size: int = 0) -> tarfile.TarInfo:
    """A FIFO, a device node, or (with ``size``) a file of zeros, as a member of an archive."""
    info = tarfile.TarInfo()
    info.type, info.mode, info.size = kind, 0o666, size
    info.devmajor, info.devminor = major, minor
    return info


def _add(tar: tarfile.TarFile, name: str, content: str | bytes | tarfile.TarInfo) -> None:
    info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo()
    info.name = name
    data = b""
    if isinstance(content, str) and content.startswith("->"):
        info.type, info.linkname = tarfile.SYMTYPE, content[2:]
    elif not isinstance(content, tarfile.TarInfo):
        data = content.encode() if isinstance(content, str) else content
        info.size, info.mode = len(data), 0o755
    tar.addfile(info, io.BytesIO(data) if data else None)


def fingerprint(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, mode and content of everything below a directory of the host."""
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mode, content)
    return found


def digests(paths: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of the host's files at stake."""
    return {
        str(p): hashlib.sha256(Path(os.path.realpath(p)).read_bytes()).hexdigest() for p in paths
    }


def results(text: str) -> dict[str, str]:
    """``name=outcome`` lines of the probe."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
