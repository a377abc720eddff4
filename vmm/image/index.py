"""The layout's ``index.json``: which manifest each reference means.

An entry without a reference is an image that lost its last one and is still kept (dangling).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmm.image.documents import decode, encode
from vmm.model.image import OCI_MANIFEST, Descriptor, Index
from vmm.ports.files import atomic_write, locked

REF_NAME = "org.opencontainers.image.ref.name"


class Entries:
    """The entries of an index, to be changed."""

    def __init__(self, manifests: list[Descriptor]) -> None:
        self.manifests = manifests

    def references(self) -> dict[str, str]:
        """Normalised reference → manifest digest."""
        return {reference_of(e): e.digest for e in self.manifests if reference_of(e)}

    def digests(self) -> list[str]:
        return list(dict.fromkeys(e.digest for e in self.manifests))

    def set(self, reference: str, digest: str, size: int) -> None:
        """Let ``reference`` ("" for none) mean the manifest; who had it stays, dangling."""
        if reference:
            self.untag(reference)
            self.manifests = [e for e in self.manifests if e.digest != digest or reference_of(e)]
        elif any(e.digest == digest for e in self.manifests):
            return
        annotations = {REF_NAME: reference} if reference else {}
        self.manifests.append(
            Descriptor(media_type=OCI_MANIFEST, digest=digest, size=size, annotations=annotations)
        )

    def untag(self, reference: str) -> None:
        """Take a reference away; its image stays, if need be without any."""
        for entry in [e for e in self.manifests if reference_of(e) == reference]:
            self.manifests.remove(entry)
            if not any(e.digest == entry.digest for e in self.manifests):
                self.manifests.append(msgspec.structs.replace(entry, annotations={}))

    def drop(self, digest: str) -> None:
        self.manifests = [e for e in self.manifests if e.digest != digest]


def reference_of(entry: Descriptor) -> str:
    return entry.annotations.get(REF_NAME, "")


class IndexFile:
    """``index.json`` below ``layout``, replaced atomically under a lock."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._path = layout / "index.json"

    def read(self) -> Entries:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Entries([])
        return Entries(decode(data, Index, str(self._path)).manifests)

    @contextlib.contextmanager
    def edit(self) -> Iterator[Entries]:
        """The entries; what was changed is written at the end, nothing after an error."""
        self._layout.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._layout / "lock"):
            entries = self.read()
            before = list(entries.manifests)
            yield entries
            if entries.manifests != before:
                self.write(entries)

    def write(self, entries: Entries) -> None:
        """Replace the file; the lock is held."""
        marker = self._layout / "oci-layout"
        if not marker.exists():
            atomic_write(marker, b'{"imageLayoutVersion":"1.0.0"}')
        atomic_write(self._path, encode(Index(manifests=entries.manifests)))
