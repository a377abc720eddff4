"""What is booted: a kernel and its initramfs, made once and kept while nothing changes.

``boot/<kernel's name>.<16 hex>/{kernel,initrd,sizes}``; the digits are a digest of all they are
made of, ``sizes`` tells whether they are still whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from vmm.guest.access import open_to, share_file
from vmm.guest.initramfs import initramfs
from vmm.guest.kernelimage import uncompress
from vmm.guest.kernels import Kernel
from vmm.guest.modules import OPTIONAL, REQUIRED, Modules
from vmm.model.errors import HostError
from vmm.ports.files import sync_directory
from vmm.storage.tree import remove_tree

#: Changes when the same ingredients give something else.
_FORM = "2"
#: Younger ones may be about to be booted by a command that runs now.
_GRACE = 600


Lock = Callable[[], AbstractContextManager[object]]


_SIZES = "sizes"


class Boot(NamedTuple):
    kernel: Path
    initrd: Path


class BootFiles:
    """The boot files below ``root``; ``init`` is the static vmm-init."""

    def __init__(self, root: Path, init: Path) -> None:
        self._root, self._init = root, init

    def prepare(self, kernel: Kernel, *, emulated: bool, gid: int, lock: Lock) -> Boot:
        """Kernel and initramfs of a guest, made if need be, readable for group ``gid``.

        ``emulated``: a guest without hardware gets the kernel uncompressed, if it can be started
        so; unpacking itself takes it a quarter of a second.  ``lock`` is held while making.
        """
        init = self._program()
        place = self._root / f"{kernel.name}.{_key(kernel, init, emulated)}"
        boot = Boot(place / "kernel", place / "initrd")
        if not _is_whole(place):
            with lock():
                if not _is_whole(place):
                    self._make(place, kernel, init, emulated)
                self._forget(kernel.name, keep=place)
        open_to(gid, place)
        for path in boot:
            share_file(gid, path)
        return boot

    def prune(self, kernels: Iterable[Kernel]) -> int:
        """Remove those of kernels that are gone and of earlier versions, and what a crash left;
        the bytes freed.  The caller holds the lock."""
        freed = 0
        newest: dict[str, float] = {}
        for path in self._all():
            name = path.name.rpartition(".")[0]
            newest[name] = max(newest.get(name, 0), path.stat().st_mtime)
        names = {kernel.name for kernel in kernels}
        for path in self._all():
            name = path.name.rpartition(".")[0]
            useless = path.name.endswith(".new") or not _is_whole(path)
            if name not in names or useless or _aged(path, newest[name]):
                freed += _remove(path)
        return freed

    def damaged(self) -> list[Path]:
        """Boot files of which something is missing; they are made anew when they are needed."""
        return [p for p in self._all() if not p.name.endswith(".new") and not _is_whole(p)]

    def _make(self, place: Path, kernel: Kernel, init: bytes, emulated: bool) -> None:
        made = Path(f"{place}.new")
        if made.exists():
            remove_tree(str(made))
        made.mkdir(mode=0o710)
        try:
            modules = Modules(kernel.modules) if kernel.modules else None
            order = modules.ordered() if modules else []
            (made / "initrd").write_bytes(initramfs(init, modules, order))
            if not (emulated and _unpack(kernel, made / "kernel")):
                shutil.copyfile(kernel.path, made / "kernel")
            (made / _SIZES).write_text(_sizes(made))
            for path in made.iterdir():
                path.chmod(0o640)
                _sync(path)
            sync_directory(str(made))
            if place.exists():
                remove_tree(str(place))
            os.rename(made, place)
        except BaseException:
            remove_tree(str(made))
            raise
        sync_directory(str(self._root))

    def _forget(self, name: str, keep: Path) -> None:
        """Remove earlier boot files of a kernel that no command can be about to boot."""
        for path in self._all():
            same = path.name.rpartition(".")[0] == name and path != keep
            if same and time.time() - path.stat().st_mtime > _GRACE:
                _remove(path)

    def _all(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(path for path in self._root.iterdir() if path.is_dir())
        return []

    def _program(self) -> bytes:
        try:
            return self._init.read_bytes()
        except FileNotFoundError:
            raise HostError(
                f"{self._init} is missing", "build the native programs: make install"
            ) from None


def _key(kernel: Kernel, init: bytes, emulated: bool) -> str:
    digest = hashlib.sha256(init)
    parts = (_FORM, kernel.identity, kernel.modules, str(emulated), *REQUIRED, *OPTIONAL)
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def _sizes(place: Path) -> str:
    return "".join(f"{name} {(place / name).stat().st_size}\n" for name in Boot._fields)


def _is_whole(place: Path) -> bool:
    try:
        return (place / _SIZES).read_text() == _sizes(place)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _unpack(kernel: Kernel, target: Path) -> bool:
    with open(target, "w+b") as file:
        if uncompress(kernel.path, file):
            return True
    target.unlink()
    return False


def _aged(path: Path, newest: float) -> bool:
    made = path.stat().st_mtime
    return made < newest and time.time() - made > _GRACE


def _remove(path: Path) -> int:
    freed = sum(file.stat().st_blocks * 512 for file in path.iterdir())
    remove_tree(str(path))
    return freed


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
