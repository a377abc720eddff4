"""The overlay driver: roots as overlayfs mounts over the layers of a LayerStore."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from vmm.model.backend import RootLayout
from vmm.model.errors import CorruptStore, HostError, VmmError
from vmm.ports.kernel import overlay_tree, tree
from vmm.ports.space import is_full, no_space
from vmm.storage.layers import MAX_LAYERS, LayerStore, directory_name, init_name, missing_layer
from vmm.storage.tree import DIRECTORY, content_size, remove_tree, sync_filesystem


class OverlayDriver(LayerStore):
    """Layers below ``root``, and copy-on-write roots made of them."""

    name = "overlay"

    def prepare(
        self, chain_ids: Sequence[str], directory: Path | str, *, volatile: bool = False
    ) -> RootLayout:
        """A writable root over the layers (base first), its own files in ``directory``.

        ``directory`` exists and is on the store's file system.  Repeating it changes nothing.
        """
        lowers = self.stack(chain_ids)
        upper, work = os.path.join(directory, "upper"), os.path.join(directory, "work")
        self._make_upper(upper, self.root / lowers[0])
        with contextlib.suppress(FileExistsError):
            os.mkdir(work, 0o700)
        return RootLayout(
            driver=self.name,
            layers_dir=str(self.root),
            lowers=lowers,
            upper=upper,
            work=work,
            volatile=volatile,
        )

    def stack(self, chain_ids: Sequence[str]) -> tuple[str, ...]:
        """What is mounted below a root of these layers (base first): relative paths, topmost
        first, that is the layer of missing mount points, which is made if need be."""
        if len(chain_ids) > MAX_LAYERS:
            raise VmmError(f"{len(chain_ids)} layers; at most {MAX_LAYERS} can be mounted")
        lowers = self._lowers(chain_ids)
        return (self._init_layer(chain_ids, lowers), *lowers)

    def view(self, layout: RootLayout) -> int:
        """Directory descriptor of the root's present content, read-only, mounted nowhere."""
        if layout.driver == "directory":
            return self._opened(tree(layout.path))
        lowers = list(layout.lowers)
        if layout.upper:
            lowers.insert(0, os.path.relpath(layout.upper, layout.layers_dir))
        return self._mounted(layout.layers_dir, lowers)

    def writable_view(self, layout: RootLayout) -> int:
        """The same, to write through: changes land in the layout's upper directory."""
        if layout.driver == "directory":
            return self._opened(tree(layout.path))
        upper = os.path.relpath(layout.upper, layout.layers_dir)
        work = os.path.relpath(layout.work, layout.layers_dir)
        return self._mounted(layout.layers_dir, layout.lowers, upper, work)

    def usage(self, upper: Path | str) -> int:
        """Bytes in the files of an upper directory."""
        fd = os.open(upper, DIRECTORY)
        try:
            return content_size(fd)
        finally:
            os.close(fd)

    def discard(self, directory: Path | str) -> None:
        """Remove what prepare() made in ``directory``."""
        for part in ("upper", "work", "upper.new"):
            remove_tree(os.path.join(directory, part))

    def _mounted(self, layers: str, lowers: Sequence[str], upper: str = "", work: str = "") -> int:
        try:
            return overlay_tree(layers, lowers, upper, work)
        except OSError as error:
            if is_full(error):  # its own working directories
                raise no_space(layers) from None
            raise HostError(
                f"overlayfs over {layers} ({len(lowers)} layers): {error.strerror}",
                "the kernel needs overlayfs, and the store a file system overlayfs can use",
            ) from None

    @staticmethod
    def _opened(mount: int) -> int:
        try:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        finally:
            os.close(mount)

    def _lowers(self, chain_ids: Sequence[str]) -> tuple[str, ...]:
        names = tuple(directory_name(chain) for chain in reversed(chain_ids))
        for chain, name in zip(reversed(chain_ids), names, strict=True):
            if not os.path.isdir(self.root / name):
                raise missing_layer(chain)
        return names

    def _init_layer(self, chain_ids: Sequence[str], lowers: Sequence[str]) -> str:
        """Name of the layer of missing mount points, made once for each top layer."""
        name = init_name(chain_ids)
        if not os.path.isdir(self.root / name):
            with self._temporary() as directory:
                self._fill_init(directory, lowers)
                self._sync(directory)
                with contextlib.suppress(FileExistsError, OSError):
                    os.rename(directory, self.root / name)
            if not os.path.isdir(self.root / name):
                raise CorruptStore(f"{self.root / name} could not be made")
        return name

    @staticmethod
    def _sync(directory: str) -> None:
        fd = os.open(directory, DIRECTORY)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)

    def _fill_init(self, directory: str, lowers: Sequence[str]) -> None:
        from vmm.storage.initlayer import fill_init_layer

        target = os.open(directory, DIRECTORY)
        try:
            if not lowers:
                os.fchmod(target, 0o755)
                fill_init_layer(target, None)
                return
            view = self._mounted(str(self.root), lowers)
            try:
                fill_init_layer(target, view)
            finally:
                os.close(view)
        finally:
            os.close(target)

    @staticmethod
    def _make_upper(upper: str, below: Path) -> None:
        if os.path.isdir(upper):
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(upper + ".new", 0o700)
        status = os.stat(below)
        os.chown(upper + ".new", status.st_uid, status.st_gid)
        os.chmod(upper + ".new", status.st_mode & 0o7777)
        os.rename(upper + ".new", upper)
