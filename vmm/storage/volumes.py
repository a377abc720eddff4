"""Volumes: directories that outlive workloads, ``volumes/<name>/{volume.json,_data}``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from vmm.model.errors import Conflict, CorruptStore, NotFound
from vmm.model.ids import check_name, new_id
from vmm.ports.files import atomic_write, locked
from vmm.storage.copytree import copy_tree
from vmm.storage.tree import DIRECTORY, content_size, open_inside, remove_tree

_RECORD = "volume.json"
_DATA = "_data"


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """``created`` is in nanoseconds UTC; ``anonymous``: made without a name, for one workload."""

    schema: int = 1
    name: str
    driver: str = "local"
    labels: dict[str, str] = {}
    created: int = 0
    anonymous: bool = False


Volumes = list[Volume]
Names = list[str]


class VolumeStore:
    """The volumes below ``root/volumes``."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root) / "volumes"

    def create(
        self, name: str = "", labels: Mapping[str, str] | None = None, *, anonymous: bool = False
    ) -> Volume:
        """The volume ``name``, made if missing ("": a new anonymous one, as with ``anonymous``)."""
        volume = Volume(
            name=check_name(name, "volume name") if name else new_id(),
            labels=dict(labels or {}),
            created=time.time_ns(),
            anonymous=anonymous or not name,
        )
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._lock()):
            directory = self.root / volume.name
            if (directory / _RECORD).exists():
                return self.inspect(volume.name)
            try:
                self._make(directory, volume)
            except BaseException:
                self._unmake(directory)
                raise
        return volume

    @staticmethod
    def _make(directory: Path, volume: Volume) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (directory / _DATA).mkdir()
            (directory / _DATA).chmod(0o755)
        atomic_write(directory / _RECORD, msgspec.json.encode(volume))

    @staticmethod
    def _unmake(directory: Path) -> None:
        """Remove a volume without a record; one that has content is kept for a person."""
        with contextlib.suppress(OSError):
            if (directory / _DATA).exists():
                (directory / _DATA).rmdir()
            directory.rmdir()

    def exists(self, name: str) -> bool:
        return (self.root / check_name(name, "volume name") / _RECORD).exists()

    def inspect(self, name: str) -> Volume:
        """The volume called ``name``."""
        path = self.root / check_name(name, "volume name") / _RECORD
        try:
            return msgspec.json.decode(path.read_bytes(), type=Volume)
        except FileNotFoundError:
            raise NotFound("volume", name, "vmm volume ls lists them") from None
        except msgspec.MsgspecError as error:
            raise CorruptStore(f"{path}: {error}", "repair the file by hand") from None

    def data(self, name: str) -> Path:
        """Where the volume's content is."""
        return self.root / check_name(name, "volume name") / _DATA

    def size(self, name: str) -> int:
        """Bytes in the volume's files."""
        fd = os.open(self.data(name), DIRECTORY)
        try:
            return content_size(fd)
        finally:
            os.close(fd)

    def list(self) -> Volumes:
        """Every volume whose record can be read, by name."""
        found = []
        for path in sorted(self.root.glob(f"*/{_RECORD}")):
            with contextlib.suppress(CorruptStore, NotFound):
                found.append(self.inspect(path.parent.name))
        return found

    def remove(self, name: str, *, in_use: Collection[str] = ()) -> None:
        """Remove a volume and its content; Conflict names the workloads ``in_use`` by."""
        self.inspect(name)
        if in_use:
            raise Conflict(
                f"remove {name}: volume is in use - [{', '.join(sorted(in_use))}]",
                "remove these workloads first (vmm rm)",
            )
        with locked(self._lock()):
            doomed = self.root / f".removed-{os.urandom(8).hex()}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.root / name, doomed)
        remove_tree(os.fspath(doomed))

    def prune(self, in_use: Collection[str], *, everything: bool = False) -> tuple[Names, int]:
        """Remove the anonymous (``everything``: all) volumes not named in ``in_use``, and what
        interrupted commands left; the names and the bytes freed."""
        removed: list[str] = []
        freed = 0
        for volume in self.list():
            if volume.name in in_use or not (volume.anonymous or everything):
                continue
            freed += self.size(volume.name)
            self.remove(volume.name)
            removed.append(volume.name)
        self.prune_temporary()
        return removed, freed

    def prune_temporary(self) -> None:
        """Remove what interrupted removals, fills and creations left."""
        if not self.root.is_dir():
            return
        with locked(self._lock()):
            for path in self.root.iterdir():
                if path.name.startswith(".removed-"):
                    remove_tree(os.fspath(path))
                elif path.is_dir():
                    for left in path.glob("_fill-*"):
                        remove_tree(os.fspath(left))
                    if not (path / _RECORD).exists():
                        self._unmake(path)

    def fill(self, name: str, view: int, path: str) -> bool:
        """Copy the directory ``path`` of an image into a volume that is still empty.

        ``view`` is the descriptor of the image's root.  The volume's own directory takes the
        image's owner and mode.  False when there was nothing to do.  All or nothing.
        """
        data = self.data(name)
        with locked(self._lock()):
            if os.listdir(data):
                return False
            try:
                source = open_inside(view, path, os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                self._fill(source, data)
            finally:
                os.close(source)
        return True

    @staticmethod
    def _fill(source: int, data: Path) -> None:
        made = os.fspath(data.parent / f"_fill-{os.urandom(8).hex()}")
        os.mkdir(made, 0o700)
        try:
            fd = os.open(made, DIRECTORY)
            try:
                copy_tree(source, fd)
            finally:
                os.close(fd)
            os.rename(made, data)  # over the empty directory: at once
        finally:
            remove_tree(made)

    def _lock(self) -> Path:
        return self.root / ".lock"
