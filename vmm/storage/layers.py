"""Layers as directories, in overlayfs's form, each with its record.

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
from typing import IO, TYPE_CHECKING, Protocol

import msgspec

from vmm.model.errors import CorruptStore, VmmError
from vmm.model.image import OCI_LAYER, Descriptor, Layer
from vmm.ports.files import atomic_write, locked
from vmm.storage.tree import DIRECTORY, remove_tree, sync_filesystem

if TYPE_CHECKING:
    from vmm.storage.untar import Limits

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


def init_name(chain_ids: Sequence[str]) -> str:
    return "i" + (directory_name(chain_ids[-1])[:23] if chain_ids else "0" * 23)


class LayerStore:
    """The layers below ``root``."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._tmp = self.root / "tmp"

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

    def orphans(self) -> list[str]:
        """Chain IDs of layers whose parent is not in the store."""
        found = []
        for path in sorted(self.root.glob("*.json")):
            with contextlib.suppress(CorruptStore):
                record = self._load(path)
                if record.parent and not self.has(record.parent):
                    found.append(record.chain_id)
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
        from vmm.storage.untar import extract

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
            doomed = [self._discard(name) for name in (directory_name(chain), init_name([chain]))]
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

    def _lock(self) -> Path:
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.root / "lock"

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
            raise missing_layer(path.stem) from None
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

    def _prune_unrecorded(self) -> int:
        """Remove layers whose record was never written, init layers whose image is gone."""
        doomed = []
        with locked(self._lock()):
            names = {path.name for path in self.root.iterdir()}
            tops = {f"i{name[:23]}" for name in names if f"{name}.json" in names}
            for name in names - {"tmp", "lock", init_name([])}:
                stale_init = name.startswith("i") and name not in tops
                unrecorded = len(name) == 24 and f"{name}.json" not in names
                if stale_init or (unrecorded and not name.startswith("i")):
                    doomed.append(self._discard(name))
        for path in filter(None, doomed):
            remove_tree(path)
        return len(doomed)


_REPAIR = "run: vmm system check --repair"


def missing_layer(what: str) -> CorruptStore:
    return CorruptStore(f"layer {what} is missing from the store", _REPAIR)
