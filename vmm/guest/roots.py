"""Roots of guests: a read-only image made once for a stack of layers, and a disk for each guest.

Below the instance's root::

    guest/<64 hex>.<n>.erofs   the image of all layers up to the one with this chain ID, as
                           version n of the writer makes it
    guest/boot/<16 hex>/   a kernel and its initramfs, as they are booted
    guest/lock             held by whoever makes or removes any of these
    workloads/<id>/disk.raw, workloads/<id>/kernel   a guest's own disk, its kernel's name

Everything in ``guest/`` can be made again.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Collection, Sequence
from pathlib import Path

from vmm.guest.access import open_to, share_file
from vmm.guest.boot import BootFiles
from vmm.guest.disks import check_disk, head_of, make_disk
from vmm.guest.erofsdir import MAGIC
from vmm.guest.kernels import Kernel, KernelStore
from vmm.model.backend import RootLayout
from vmm.model.errors import HostError, NotFound
from vmm.ports.files import atomic_write, locked, sync_directory
from vmm.ports.runner import HostRunner, Runner
from vmm.ports.space import is_full, no_space
from vmm.storage.overlay import OverlayDriver

#: Changes when the same layers make another image; those of other versions go with their layers.
FORM = 1
_SUFFIX = ".erofs"
#: The superblock's magic, block size and number of blocks (Linux, fs/erofs/erofs_fs.h).
_HEAD = struct.Struct("<1024xI8xB23xI")
_NO_LAYERS = "0" * 64
KERNEL_NAME = "kernel"


def is_whole(path: Path) -> bool:
    """Whether a root image is there with all its blocks; its content is not looked at."""
    try:
        head, size = head_of(path, _HEAD.size)
    except FileNotFoundError:
        return False
    if len(head) < _HEAD.size:
        return False
    magic, block_bits, blocks = _HEAD.unpack(head)
    return bool(magic == MAGIC and size == blocks << block_bits)


def _chain(path: Path) -> str:
    return f"sha256:{path.name.partition('.')[0]}"


class DiskDriver:
    """Roots as disks, of the layers in an OverlayDriver."""

    name = "disk"

    def __init__(
        self,
        root: Path | str,
        layers: OverlayDriver,
        *,
        libexec: Path | str,
        kernel: str = "",
        size: int = 10 << 30,
        runner: Runner | None = None,
        kernels: KernelStore | None = None,
    ) -> None:
        """``kernel``: name of the kernel to boot, "" for the default; ``size``: of new disks."""
        self.root = Path(root)
        self.directory = self.root / "guest"
        self.layers = layers
        self.kernels = kernels or KernelStore(self.root / "kernels")
        self._boot = BootFiles(self.directory / "boot", Path(libexec) / "vmm-init")
        self._kernel, self._size = kernel, size
        self._runner = runner or HostRunner()

    def prepare(
        self,
        chain_ids: Sequence[str],
        directory: Path | str,
        *,
        uid: int,
        gid: int,
        emulated: bool = False,
        used: bool = False,
        running: bool = False,
    ) -> RootLayout:
        """The root of a guest over the layers (base first), its own files in ``directory``.

        ``uid`` and ``gid`` are the hypervisor's: it may read the shared files and owns the
        guest's disk.  ``emulated``: no hardware runs the guest, so what boots quickest without
        is taken.  What is there already is kept, but the kernel is chosen anew,
        unless the guest is ``running``.

        ``used``: the guest ran before, so that its disk is not made again; CorruptStore when it
        was lost or damaged.
        """
        self._open(gid, directory)
        kernel = self._kernel_of(Path(directory) / KERNEL_NAME, running)
        lowers = self.layers.stack(chain_ids)
        image = self._image(chain_ids, lowers, gid)
        boot = self._boot.prepare(kernel, emulated=emulated, gid=gid, lock=self._locked)
        disk = os.path.join(directory, "disk.raw")
        if used:
            check_disk(disk)
        make_disk(disk, self._size, self._runner, uid=uid, gid=gid)
        self._note(Path(directory) / KERNEL_NAME, kernel.name)
        top = os.stat(self.layers.root / lowers[0])
        return RootLayout(
            driver=self.name,
            layers_dir=str(self.layers.root),
            lowers=lowers,
            path=str(image),
            mode=top.st_mode & 0o7777,
            uid=top.st_uid,
            gid=top.st_gid,
            disk=disk,
            filesystem="erofs",
            kernel=str(boot.kernel),
            initrd=str(boot.initrd),
        )

    def verify(self, directory: Path | str) -> None:
        """CorruptStore when the disk of a guest that ran is not there with all its blocks."""
        check_disk(os.path.join(directory, "disk.raw"))

    def holds(self, directory: Path | str) -> bool:
        """Whether there is a guest's disk in ``directory``, whole or not."""
        return os.path.exists(os.path.join(directory, "disk.raw"))

    def discard(self, directory: Path | str) -> None:
        """Remove what prepare() made in ``directory``."""
        for name in ("disk.raw", "disk.raw.new", KERNEL_NAME):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))

    def usage(self, directory: Path | str) -> int:
        """Bytes that the guest's disk in ``directory`` takes of the host's storage."""
        try:
            return os.stat(os.path.join(directory, "disk.raw")).st_blocks * 512
        except FileNotFoundError:
            return 0

    def images(self) -> dict[str, int]:
        """Bytes of each root image, by the chain ID of its top layer."""
        paths = self.directory.glob("*" + _SUFFIX)
        return {_chain(path): path.stat().st_blocks * 512 for path in sorted(paths)}

    def remove(self, chain: str) -> int:
        """Remove the root image of a stack of layers; the bytes freed. Missing is fine."""
        if not self.directory.is_dir():
            return 0
        with self._locked():
            name = self._name(chain)
            return sum(map(self._unlink, self.directory.glob(f"{name}*{_SUFFIX}")))

    def prune(self, keep: Collection[str] | None = None) -> int:
        """Remove the root images whose layers are gone, and those not in ``keep`` (top chain
        IDs), boot files that no kernel needs, and what a crash left; the bytes freed."""
        if not self.directory.is_dir():
            return 0
        freed = 0
        with self._locked():
            for path in self.directory.glob("*" + _SUFFIX):
                chain = _chain(path)
                gone = self._name(chain) != _NO_LAYERS and not self.layers.has(chain)
                if gone or not is_whole(path) or (keep is not None and chain not in keep):
                    freed += self._unlink(path)
            for path in self.directory.glob("*" + _SUFFIX + ".new"):
                freed += self._unlink(path)
            freed += self._boot.prune(self.kernels.list())
        return freed

    def check(self) -> list[str]:
        """Faults: what a killed command left, and what was damaged since."""
        left = sorted(self.directory.glob("*" + _SUFFIX + ".new"))
        images = sorted(self.directory.glob("*" + _SUFFIX))
        return [
            *(f"{path}: an unfinished root image" for path in left),
            *(f"{path}: a damaged root image" for path in images if not is_whole(path)),
            *(f"{path}: damaged boot files" for path in self._boot.damaged()),
        ]

    def _kernel_of(self, note: Path, running: bool) -> Kernel:
        if running:
            with contextlib.suppress(FileNotFoundError, NotFound):
                return self.kernels.get(note.read_text())
        return self.kernels.choose(self._kernel)

    def _image(self, chain_ids: Sequence[str], lowers: tuple[str, ...], gid: int) -> Path:
        path = self._path(chain_ids[-1] if chain_ids else "")
        if not is_whole(path):
            with self._locked():
                if not is_whole(path):
                    self._write_image(path, lowers)
        share_file(gid, path)
        return path

    def _write_image(self, path: Path, lowers: tuple[str, ...]) -> None:
        from vmm.guest.erofs import write_image

        made = f"{path}.new"  # one writer at a time: what is there was left by a killed one
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        image = os.open(made, flags, 0o600)
        try:
            view = self.layers.view(
                RootLayout(driver="overlay", layers_dir=str(self.layers.root), lowers=lowers)
            )
            try:
                write_image(view, image, self.directory)
            finally:
                os.close(view)
            os.fsync(image)
            os.rename(made, path)
        except OSError as error:
            if is_full(error):
                raise no_space(self.directory) from None
            raise HostError(f"root image {path}: {error.strerror}") from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
            os.close(image)
        sync_directory(str(self.directory))

    def _path(self, chain: str) -> Path:
        return self.directory / f"{self._name(chain)}.{FORM}{_SUFFIX}"

    @staticmethod
    def _name(chain: str) -> str:
        return chain.removeprefix("sha256:") or _NO_LAYERS

    def _open(self, gid: int, directory: Path | str) -> None:
        (self.directory / "boot").mkdir(mode=0o710, parents=True, exist_ok=True)
        workloads = os.path.dirname(os.path.abspath(directory))
        ours = [self.root, self.directory, self.directory / "boot", directory]
        open_to(gid, *ours, *([workloads] if Path(workloads) != self.root else []))

    def _locked(self) -> contextlib.AbstractContextManager[int]:
        return locked(self.directory / "lock")

    @staticmethod
    def _unlink(path: Path) -> int:
        try:
            size = path.stat().st_blocks * 512
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    @staticmethod
    def _note(path: Path, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == name:
                return
        atomic_write(path, name.encode())
