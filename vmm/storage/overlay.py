"""The overlay driver: layers as directories, roots as overlayfs mounts over them.

On disk, below ``layers/``::

    <24 hex>/       a layer's files, in overlayfs's form; named by its chain ID
    <24 hex>.json   its record; a layer without one does not exist
    i<23 hex>/      the mount points missing in the image whose top layer this is
    tmp/            layers being made, each locked by its maker

The names are short so that 127 of them fit into the 4096 bytes of mount(2)'s options.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import msgspec

from vmm.model.backend import RootLayout
from vmm.model.errors import CorruptStore, HostError, VmmError
from vmm.model.image import OCI_LAYER, Descriptor, Layer
from vmm.ports.files import atomic_write, locked
from vmm.ports.kernel import overlay_tree, tree
from vmm.storage.initlayer import fill_init_layer
from vmm.storage.tree import DIRECTORY, content_size, remove_tree, sync_filesystem
from vmm.storage.untar import Limits, extract

#: Most layers one image may have (a limit of the mount options' length; Docker's too).
MAX_LAYERS = 127


class BlobWriter(Protocol):
    """A blob being written; discarded unless committed."""

    def write(self, data: bytes, /) -> object: ...

    def commit(self) -> tuple[str, int]:
        """Keep it; its digest and size."""
        ...


class BlobSink(Protocol):
    """Where the tar of a new layer goes."""

    def writer(self) -> contextlib.AbstractContextManager[BlobWriter]: ...


class LayerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a layer beside its files."""

    schema: int = 1
    chain_id: str
    diff_id: str
    parent: str = ""
    size: int
    blob: Descriptor

    def layer(self) -> Layer:
        return Layer(diff_id=self.diff_id, chain_id=self.chain_id, size=self.size, blob=self.blob)


def chain_id(parent: str | None, diff_id: str) -> str:
    """ChainID of ``diff_id`` on top of ``parent`` (image-spec, config.md, "Layer ChainID")."""
    if not parent:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()


def directory_name(chain: str) -> str:
    return chain.removeprefix("sha256:")[:24]


def _init_name(chain_ids: Sequence[str]) -> str:
    return "i" + (directory_name(chain_ids[-1])[:23] if chain_ids else "0" * 23)


class OverlayDriver:
    """Layers below ``root``, and roots made of them."""

    name = "overlay"

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._tmp = self.root / "tmp"

    # Layers

    def layer(self, chain: str) -> Layer:
        """The layer with this chain ID; CorruptStore if it is missing or damaged."""
        return self._record(chain).layer()

    def has(self, chain: str) -> bool:
        try:
            return self._record(chain).chain_id == chain
        except CorruptStore:
            return False

    def size(self, chain: str) -> int:
        """Bytes in the layer's files."""
        return self._record(chain).size

    def ancestry(self, chain: str) -> list[str]:
        """The chain IDs up to ``chain``, base first."""
        chains: list[str] = []
        while chain:
            chains.append(chain)
            chain = self._record(chain).parent
        return chains[::-1]

    def layers(self) -> list[Layer]:
        """Every layer in the store whose record can be read."""
        found = []
        for path in sorted(self.root.glob("*.json")):
            with contextlib.suppress(CorruptStore):
                found.append(self._load(path).layer())
        return found

    def age(self, chain: str) -> float:
        """Seconds since the layer was made."""
        try:
            return time.time() - os.stat(self._record_path(chain)).st_mtime
        except FileNotFoundError:
            return 0

    def chain(self, parent: str | None, diff_id: str) -> str:
        return chain_id(parent, diff_id)

    def apply(
        self,
        stream: IO[bytes],
        parent_chain: str | None = None,
        *,
        diff_id: str = "",
        blob: Descriptor | None = None,
        limits: Limits | None = None,
    ) -> Layer:
        """Unpack the uncompressed tar ``stream`` as a layer on ``parent_chain``.

        With ``diff_id``, the archive must have that digest.  ``blob`` says which blob it came
        from; without, the archive itself is the blob.
        """
        self._check_parent(parent_chain)
        with self._temporary() as directory:
            fd = os.open(directory, DIRECTORY)
            try:
                self._inherit_root(fd, parent_chain)
                done = extract(stream, fd, whiteouts="overlay", limits=limits, digest=True)
                if diff_id and done.digest != diff_id:
                    raise CorruptStore(f"the layer's digest is {done.digest}, not {diff_id}")
                sync_filesystem(fd)
            finally:
                os.close(fd)
            blob = blob or Descriptor(media_type=OCI_LAYER, digest=done.digest, size=done.length)
            return self._keep(directory, parent_chain, done.digest, done.size, blob)

    def adopt(self, upper: Path | str, parent_chain: str | None, sink: BlobSink) -> Layer | None:
        """Make the finished upper directory a layer by renaming it; None when it is empty.

        Its tar is written to ``sink``.  ``upper`` is on the store's file system, and gone after.
        """
        from vmm.storage.difftar import diff_tar

        upper = os.fspath(upper)
        if not os.listdir(upper):
            return None
        self._check_parent(parent_chain)
        fd = os.open(upper, DIRECTORY)
        try:
            with sink.writer() as writer:
                size = diff_tar(fd, writer)
                digest, length = writer.commit()
            sync_filesystem(fd)
        finally:
            os.close(fd)
        blob = Descriptor(media_type=OCI_LAYER, digest=digest, size=length)
        return self._keep(upper, parent_chain, digest, size, blob)

    def remove(self, chain: str) -> int:
        """Remove a layer and what was derived from it; the bytes freed. Missing is fine."""
        freed = 0
        with locked(self._lock()):
            with contextlib.suppress(CorruptStore):
                freed = self._record(chain).size
            doomed = [self._discard(name) for name in (directory_name(chain), _init_name([chain]))]
        for path in filter(None, doomed):
            remove_tree(path)
        return freed

    def check(self) -> list[str]:
        """Faults: a layer whose directory or parent is missing, or whose record is unreadable."""
        faults = []
        for path in sorted(self.root.glob("*.json")):
            try:
                record = self._load(path)
            except CorruptStore as error:
                faults.append(error.message)
                continue
            if not path.with_suffix("").is_dir():
                faults.append(f"layer {record.chain_id or path.stem}: its files are missing")
            if record.parent and not self.has(record.parent):
                faults.append(f"layer {record.chain_id}: its parent {record.parent} is missing")
        return faults

    def prune_temporary(self) -> int:
        """Remove what interrupted commands left; the number of directories removed."""
        removed = 0
        for path in self._tmp.iterdir() if self._tmp.is_dir() else ():
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fd = os.open(path, DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_tree(os.fspath(path))
                    removed += 1
                finally:
                    os.close(fd)
        return removed + self._prune_unrecorded()

    # Roots

    def prepare(
        self, chain_ids: Sequence[str], directory: Path | str, *, volatile: bool = False
    ) -> RootLayout:
        """A writable root over the layers (base first), its own files in ``directory``.

        ``directory`` exists and is on the store's file system.  Repeating it changes nothing.
        """
        if len(chain_ids) > MAX_LAYERS:
            raise VmmError(f"{len(chain_ids)} layers; at most {MAX_LAYERS} can be mounted")
        lowers = self._lowers(chain_ids)
        init = self._init_layer(chain_ids, lowers)
        upper, work = os.path.join(directory, "upper"), os.path.join(directory, "work")
        self._make_upper(upper, self.root / init)
        with contextlib.suppress(FileExistsError):
            os.mkdir(work, 0o700)
        return RootLayout(
            driver=self.name,
            layers_dir=str(self.root),
            lowers=(init, *lowers),
            upper=upper,
            work=work,
            volatile=volatile,
        )

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

    # Inside

    def _mounted(self, layers: str, lowers: Sequence[str], upper: str = "", work: str = "") -> int:
        try:
            return overlay_tree(layers, lowers, upper, work)
        except OSError as error:
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

    def _lock(self) -> Path:
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.root / "lock"

    def _lowers(self, chain_ids: Sequence[str]) -> tuple[str, ...]:
        names = tuple(directory_name(chain) for chain in reversed(chain_ids))
        for chain, name in zip(reversed(chain_ids), names, strict=True):
            if not os.path.isdir(self.root / name):
                raise _missing(chain)
        return names

    def _record(self, chain: str) -> LayerRecord:
        record = self._load(self._record_path(chain))
        if record.chain_id != chain:
            raise CorruptStore(f"layer {chain}: {record.chain_id} has its place")
        return record

    def _record_path(self, chain: str) -> Path:
        return self.root / f"{directory_name(chain)}.json"

    def _load(self, path: Path) -> LayerRecord:
        try:
            return msgspec.json.decode(path.read_bytes(), type=LayerRecord)
        except FileNotFoundError:
            raise _missing(path.stem) from None
        except msgspec.MsgspecError as error:
            raise CorruptStore(f"layer record {path}: {error}", _REPAIR) from None

    def _check_parent(self, parent: str | None) -> None:
        if parent and len(self.ancestry(parent)) >= MAX_LAYERS:
            raise VmmError(f"an image can have at most {MAX_LAYERS} layers")

    def _inherit_root(self, fd: int, parent: str | None) -> None:
        """The topmost layer's directory is what ``/`` looks like."""
        status = os.stat(self.root / directory_name(parent)) if parent else None
        os.fchown(fd, status.st_uid if status else 0, status.st_gid if status else 0)
        os.fchmod(fd, status.st_mode & 0o7777 if status else 0o755)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[str]:
        """A directory that is gone at the end unless renamed; locked while in use."""
        self._lock()
        path = os.fspath(self._tmp / os.urandom(8).hex())
        os.mkdir(path, 0o700)
        fd = os.open(path, DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield path
        finally:
            os.close(fd)
            remove_tree(path)

    def _keep(
        self, directory: str, parent: str | None, diff_id: str, size: int, blob: Descriptor
    ) -> Layer:
        """Rename a finished directory into place, unless the layer is there already."""
        chain = chain_id(parent, diff_id)
        record = LayerRecord(
            chain_id=chain, diff_id=diff_id, parent=parent or "", size=size, blob=blob
        )
        name = directory_name(chain)
        doomed: list[str | None] = []
        with locked(self._lock()):
            if self.has(chain) and os.path.isdir(self.root / name):
                record = self._record(chain)
                doomed.append(directory)
            else:
                if os.path.exists(self.root / f"{name}.json") and not self._same(name, chain):
                    raise CorruptStore(f"layer {chain}: another layer has its place")
                doomed.append(self._discard(name))
                os.rename(directory, self.root / name)
                atomic_write(self.root / f"{name}.json", msgspec.json.encode(record))
        for path in filter(None, doomed):
            remove_tree(path)
        return record.layer()

    def _same(self, name: str, chain: str) -> bool:
        """Whether the record at ``name`` may be replaced by one of ``chain``."""
        try:
            return self._load(self.root / f"{name}.json").chain_id == chain
        except CorruptStore:
            return True

    def _discard(self, name: str) -> str | None:
        """Take a layer away: its record first; the path to remove afterwards, if any."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / f"{name}.json")
        path = os.fspath(self._tmp / os.urandom(8).hex())
        try:
            os.rename(self.root / name, path)
        except FileNotFoundError:
            return None
        return path

    def _init_layer(self, chain_ids: Sequence[str], lowers: Sequence[str]) -> str:
        """Name of the layer of missing mount points, made once for each top layer."""
        name = _init_name(chain_ids)
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

    def _prune_unrecorded(self) -> int:
        """Remove layers whose record was never written, init layers whose image is gone."""
        doomed = []
        with locked(self._lock()):
            names = {path.name for path in self.root.iterdir()}
            tops = {f"i{name[:23]}" for name in names if f"{name}.json" in names}
            for name in names - {"tmp", "lock", _init_name([])}:
                stale_init = name.startswith("i") and name not in tops
                unrecorded = len(name) == 24 and f"{name}.json" not in names
                if stale_init or (unrecorded and not name.startswith("i")):
                    doomed.append(self._discard(name))
        for path in filter(None, doomed):
            remove_tree(path)
        return len(doomed)


_REPAIR = "run: vmm system check --repair"


def _missing(what: str) -> CorruptStore:
    return CorruptStore(f"layer {what} is missing from the store", _REPAIR)
