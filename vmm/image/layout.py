"""Images from an OCI image layout of another tool (image-spec, image-layout.md).

Nothing in it is trusted: digests and sizes are checked, and nothing is stored when one is wrong.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from vmm.image.blobs import MAX_DOCUMENT
from vmm.image.compression import decompressed
from vmm.image.documents import decode
from vmm.image.reference import is_digest
from vmm.image.store import host_architecture
from vmm.model.errors import CorruptStore, HostError, InvalidDocument, NotFound
from vmm.model.image import Descriptor, Image, ImageConfig, Index, Layer, Manifest

if TYPE_CHECKING:
    from vmm.image.store import ImageStore

_REF_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_MAX_LAYERS = 127


def load_layout(store: ImageStore, path: Path, reference: str) -> Image:
    """See ImageStore.load_layout."""
    if not (path / "oci-layout").is_file():
        raise InvalidDocument(str(path), ["is not an OCI image layout (no oci-layout file)"])
    layout = _Layout(path)
    chosen, named = layout.choose(layout.document("index.json"))
    name = store.normalise(reference or named) if reference or named else ""
    manifest_data = layout.blob(chosen)
    manifest = _manifest(manifest_data, chosen)
    config_data = layout.blob(manifest.config)
    config = decode(config_data, ImageConfig, f"config {manifest.config.digest}")
    _check(manifest, config, path)
    layers = _layers(store, layout, manifest, config)
    return store.commit_documents(
        config_data, manifest.layers, layers, [name] if name else [], manifest_data
    )


class _Layout:
    def __init__(self, path: Path) -> None:
        self._path = path

    def document(self, name: str) -> bytes:
        with self._open(self._path / name) as file:
            data = file.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise InvalidDocument(str(self._path / name), [f"larger than {MAX_DOCUMENT} bytes"])
        return data

    def blob(self, descriptor: Descriptor) -> bytes:
        """A document, checked against its descriptor."""
        data = self.document(self._name(descriptor))
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != descriptor.digest or len(data) != descriptor.size:
            raise InvalidDocument(
                str(self._path), [f"blob {descriptor.digest} has other content or size"]
            )
        return data

    def open_blob(self, descriptor: Descriptor) -> IO[bytes]:
        return self._open(self._path / self._name(descriptor))

    def choose(self, data: bytes, depth: int = 0) -> tuple[Descriptor, str]:
        """The manifest for this host's platform, and the name the layout gives it."""
        fields = msgspec.json.decode(data) if data.startswith(b"{") else None
        if not isinstance(fields, dict) or "layers" in fields or depth > 4:
            raise InvalidDocument(str(self._path), ["its index is no image index"])
        index = decode(data, Index, f"{self._path}: index")
        for entry in index.manifests:
            named = next((entry.annotations[n] for n in _REF_NAMES if n in entry.annotations), "")
            if entry.media_type in _INDEXES:
                inner, deeper = self.choose(self.blob(entry), depth + 1)
                return inner, named or deeper
            if entry.media_type in _MANIFESTS and _suits(entry):
                return entry, named
        raise NotFound("image", f"for linux/{host_architecture()} in {self._path}")

    def _name(self, descriptor: Descriptor) -> str:
        if not is_digest(descriptor.digest) or not descriptor.digest.startswith("sha256:"):
            raise InvalidDocument(str(self._path), [f"{descriptor.digest!r:.100} is no digest"])
        return "blobs/sha256/" + descriptor.digest[7:]

    def _open(self, path: Path) -> IO[bytes]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidDocument(str(path), ["is not a regular file"])
        return open(fd, "rb")


def _suits(entry: Descriptor) -> bool:
    platform = entry.platform
    return platform is None or (platform.os, platform.architecture) == (
        "linux",
        host_architecture(),
    )


def _manifest(data: bytes, chosen: Descriptor) -> Manifest:
    fields = decode(data, dict[str, Any], f"manifest {chosen.digest}")
    if "manifests" in fields or fields.get("mediaType", chosen.media_type) != chosen.media_type:
        raise InvalidDocument(f"manifest {chosen.digest}", ["is not of the type it is said to be"])
    return decode(data, Manifest, f"manifest {chosen.digest}")


def _check(manifest: Manifest, config: ImageConfig, path: Path) -> None:
    faults = []
    if len(manifest.layers) != len(config.rootfs.diff_ids):
        faults.append("its manifest and its configuration have different numbers of layers")
    if len(manifest.layers) > _MAX_LAYERS:
        faults.append(f"it has more than {_MAX_LAYERS} layers")
    faults += [f"{d!r:.100} is no diff_id" for d in config.rootfs.diff_ids if not is_digest(d)]
    if config.os != "linux":
        faults.append(f"its operating system is {config.os!r}")
    if faults:
        raise InvalidDocument(str(path), faults)


def _layers(
    store: ImageStore, layout: _Layout, manifest: Manifest, config: ImageConfig
) -> list[Layer]:
    """Store and unpack the layers; after an error those that are new are removed again."""
    layers: list[Layer] = []
    made: list[Layer] = []
    try:
        for descriptor, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
            parent = layers[-1].chain_id if layers else None
            chain = store.driver.chain(parent, diff_id)
            new = not store.driver.has(chain)
            _store_blob(store, layout, descriptor)
            layer = (
                _unpack(store, descriptor, diff_id, parent) if new else store.driver.layer(chain)
            )
            layers.append(layer)
            made += [layer] if new else []
    except BaseException:
        for layer in reversed(made):
            store.driver.remove(layer.chain_id)
        raise
    return layers


def _store_blob(store: ImageStore, layout: _Layout, descriptor: Descriptor) -> None:
    if store.blobs.has(descriptor.digest):
        return
    with layout.open_blob(descriptor) as source, store.blobs.writer() as writer:
        while writer.size <= descriptor.size and (data := source.read(1 << 20)):
            writer.write(data)
        if (writer.digest, writer.size) != (descriptor.digest, descriptor.size):
            raise InvalidDocument(
                "layer", [f"blob {descriptor.digest} has other content or another size"]
            )
        writer.commit()


def _unpack(store: ImageStore, descriptor: Descriptor, diff_id: str, parent: str | None) -> Layer:
    try:
        with open(store.blobs.path(descriptor.digest), "rb") as blob:
            plain = decompressed(blob)
            try:
                return store.driver.apply(plain, parent, diff_id=diff_id, blob=descriptor)
            finally:
                plain.close()
    except (CorruptStore, InvalidDocument):
        held = {layer.blob.digest for layer in store.driver.layers() if layer.blob}
        if descriptor.digest not in held:
            store.blobs.remove(descriptor.digest)
        raise
