"""File trees that are hard to copy, as layers, and what a tree holds, as text to compare."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from vmm.storage.overlay import OverlayDriver
from vmm.storage.tree import Entry, walk

#: struct vfs_cap_data, revision 2: cap_net_raw permitted and effective.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


class Discard:
    """A blob sink that keeps the digest only."""

    def __init__(self) -> None:
        self._hash, self._length = hashlib.sha256(), 0

    @contextlib.contextmanager
    def writer(self) -> Iterator[Discard]:
        self.__init__()  # type: ignore[misc]
        yield self

    def write(self, data: bytes, /) -> None:
        self._hash.update(data)
        self._length += len(data)

    def commit(self) -> tuple[str, int]:
        return "sha256:" + self._hash.hexdigest(), self._length


def add_layer(
    driver: OverlayDriver, chain: list[str], work: Path, change: Callable[[str], None]
) -> list[str]:
    """The chain with a layer more: what ``change`` does to a writable root over it."""
    directory = work / f"step{len(chain)}"
    directory.mkdir(parents=True)
    layout = driver.prepare(chain, directory)
    root = driver.writable_view(layout)
    try:
        change(f"/proc/self/fd/{root}")
    finally:
        os.close(root)
    layer = driver.adopt(layout.upper, chain[-1] if chain else None, Discard())
    driver.discard(directory)
    assert layer is not None
    return [*chain, layer.chain_id]


def fill_first(root: str) -> None:
    """Every kind of file, owner, mode, attribute and size."""
    os.chmod(root, 0o751)
    os.makedirs(f"{root}/sizes")
    for size in (0, 1, 100, 2047, 2048, 3900, 4031, 4032, 4095, 4096, 4097, 8192, 12000,
                 131072, 131073, 300001):  # fmt: skip
        write(f"{root}/sizes/{size}", os.urandom(size))
    os.makedirs(f"{root}/many/deep/er", 0o700)
    for number in range(700):
        write(f"{root}/many/{'n' * (number % 60)}{number}", b"%d" % number)
    os.makedirs(f"{root}/kinds")
    write(f"{root}/kinds/first", b"linked")
    os.link(f"{root}/kinds/first", f"{root}/kinds/second")
    os.link(f"{root}/kinds/first", f"{root}/many/deep/third")
    os.symlink("../sizes/1", f"{root}/kinds/link")
    os.symlink("x" * 4000, f"{root}/kinds/long-link")
    os.mkfifo(f"{root}/kinds/fifo", 0o620)
    os.mknod(f"{root}/kinds/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(f"{root}/kinds/block", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
    write(f"{root}/kinds/setuid", b"#!/bin/sh\n", 0o6755)
    os.chown(f"{root}/kinds/setuid", 70000, 2**31 + 5)
    os.chmod(f"{root}/kinds/setuid", 0o6755)
    os.chown(f"{root}/kinds/link", 1, 2, follow_symlinks=False)
    write(f"{root}/kinds/times", b"")
    os.utime(f"{root}/kinds/times", ns=(0, 981173106123456789))
    write(f"{root}/kinds/long-ago", b"")
    os.utime(f"{root}/kinds/long-ago", ns=(0, -86399500000000))
    write(os.fsencode(root) + b"/kinds/\xff\xfe\n name", b"odd")
    os.makedirs(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)
    _attributes(root)
    _sparse(f"{root}/sparse")


def _attributes(root: str) -> None:
    write(f"{root}/kinds/capable", b"program", 0o755)
    os.setxattr(f"{root}/kinds/capable", "security.capability", CAPABILITY)
    os.setxattr(f"{root}/kinds/capable", "user.note", b"a\0b")
    os.setxattr(f"{root}/kinds/capable", "user.empty", b"")
    os.setxattr(f"{root}/tmp", "user.long", os.urandom(3000))
    os.setxattr(f"{root}/many", "trusted.mine", b"kept")


def _sparse(path: str) -> None:
    """64 MiB of which three pieces are there, the last of them short."""
    with open(path, "wb") as file:
        for place in (4096 * 3 + 10, 20 << 20, (64 << 20) - 5):
            file.seek(place)
            file.write(b"piece")


def change_second(root: str) -> None:
    """What a layer does to the one below: removals, replacements, changes of owner."""
    os.unlink(f"{root}/sizes/100")
    os.unlink(f"{root}/kinds/null")
    write(f"{root}/sizes/4096", b"shorter")
    os.chown(f"{root}/many/deep", 7, 8)
    os.rmdir(f"{root}/many/deep/er")
    os.mkdir(f"{root}/many/deep/er", 0o750)
    write(f"{root}/many/deep/er/new", b"new")


def write(path: str | bytes, content: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def manifest(root: int) -> list[str]:
    """A line for each file below ``root``, in the form of ``guest-init.c``."""
    return sorted(_line(entry) for entry in walk(root))


def _line(entry: Entry) -> str:
    status = entry.status
    path = f"/proc/self/fd/{entry.parent}/{entry.name}"
    content = 0
    if stat.S_ISREG(status.st_mode):
        content = fnv(Path(path).read_bytes())
    elif stat.S_ISLNK(status.st_mode):
        content = fnv(os.fsencode(os.readlink(path)))
    directory = stat.S_ISDIR(status.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [f"{n}={fnv(os.getxattr(path, n, follow_symlinks=False)):x}" for n in names]
    name = "".join(chr(b) if 33 <= b < 127 else f"\\{b:02x}" for b in os.fsencode(entry.path))
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    return " ".join([
        name, f"{status.st_mode:o}", str(status.st_uid), str(status.st_gid),
        "-" if directory else str(status.st_nlink), "-" if directory else str(status.st_size),
        f"{seconds}.{nanoseconds}",
        f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}", f"{content:x}", *xattrs,
    ])  # fmt: skip


def fnv(data: bytes) -> int:
    """A digest of what is not zero (FNV-1a, 64 bits, with the offset of each byte)."""
    value = 0xCBF29CE484222325
    for match in re.finditer(rb"[^\0]+", data):
        value = ((value ^ match.start()) * 0x100000001B3) & (2**64 - 1)
        for byte in match[0]:
            value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value
