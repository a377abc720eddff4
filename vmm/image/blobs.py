"""Content-addressed blobs (image-spec, image-layout.md): written once, never half."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType

from vmm.image.reference import is_digest
from vmm.model.errors import CorruptStore, HostError
from vmm.ports.files import sync_directory
from vmm.ports.space import is_full, no_space

#: Largest configuration or manifest that is read (what registries accept).
MAX_DOCUMENT = 4 << 20
_CHUNK = 1 << 20
_REPAIR = "run: vmm system check; remove the image and get it again"


class BlobWriter:
    """A blob being written; discarded unless committed."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._path = store.temporary()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def write(self, data: bytes, /) -> int:
        self._hash.update(data)
        self.size += len(data)
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except OSError as error:
                if is_full(error):
                    raise no_space(self._store.root) from None
                raise HostError(f"writing to {self._store.root}: {error.strerror}") from None
        return len(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()

    def commit(self) -> tuple[str, int]:
        """Keep what was written; its digest and size."""
        os.fsync(self._fd)
        os.rename(self._path, self._store.path(self.digest))
        sync_directory(os.fspath(self._store.root))
        return self.digest, self.size


class BlobStore:
    """The blobs of an image layout at ``layout``."""

    def __init__(self, layout: Path) -> None:
        self.root = layout / "blobs" / "sha256"
        self._tmp = layout / "tmp"

    def writer(self) -> BlobWriter:
        return BlobWriter(self)

    def temporary(self) -> Path:
        """A path for a file to be written and renamed."""
        for directory in (self.root, self._tmp):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._tmp / os.urandom(8).hex()

    def path(self, digest: str) -> Path:
        if not is_digest(digest) or not digest.startswith("sha256:"):
            raise CorruptStore(f"{digest!r:.100} is not a sha256 digest")
        return self.root / digest[7:]

    def put(self, data: bytes) -> str:
        """Store a document; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.has(digest):
            with self.writer() as writer:
                writer.write(data)
                writer.commit()
        return digest

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes on disk, 0 if missing."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, digest: str, what: str = "blob") -> bytes:
        """A document's bytes, checked against its digest."""
        try:
            with open(self.path(digest), "rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            raise CorruptStore(f"{what} {digest} is missing from the store", _REPAIR) from None
        if len(data) > MAX_DOCUMENT:
            raise CorruptStore(f"{what} {digest} is larger than {MAX_DOCUMENT} bytes")
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise CorruptStore(f"{what} {digest}: its content does not have this digest", _REPAIR)
        return data

    def fault(self, digest: str) -> str:
        """What is wrong with a blob of any size; "" if nothing."""
        try:
            with open(self.path(digest), "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return f"blob {digest} is missing"
        except OSError as error:
            return f"blob {digest}: {error.strerror}"
        return "" if f"sha256:{found}" == digest else f"blob {digest} has other content: {found}"

    def remove(self, digest: str) -> int:
        """Remove a blob; the bytes freed."""
        size = self.size(digest)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(digest))
        return size

    def digests(self) -> list[str]:
        """Every blob in the store."""
        if not self.root.is_dir():
            return []
        return [d for n in sorted(os.listdir(self.root)) if is_digest(d := f"sha256:{n}")]

    def prune_temporary(self) -> int:
        """Remove files that interrupted commands left; their number."""
        removed = 0
        for path in self._tmp.iterdir() if self._tmp.is_dir() else ():
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                    removed += 1
                finally:
                    os.close(fd)
        return removed
