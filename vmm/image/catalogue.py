"""Looking images up: what the index, the manifests and the configurations say together."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Any, Protocol

from vmm.image import reference as refs
from vmm.image.blobs import BlobStore
from vmm.image.documents import decode
from vmm.image.index import Entries, IndexFile
from vmm.model.errors import CorruptStore, NotFound, UsageError
from vmm.model.ids import HEX_PREFIX, short
from vmm.model.image import OCI_LAYER, Descriptor, Image, ImageConfig, Layer, Manifest


class LayerDriver(Protocol):
    """What the image store needs of a storage driver (see vmm.storage.overlay)."""

    def layer(self, chain: str) -> Layer: ...
    def has(self, chain: str) -> bool: ...
    def size(self, chain: str) -> int: ...
    def ancestry(self, chain: str) -> list[str]: ...
    def layers(self) -> list[Layer]: ...
    def orphans(self) -> list[str]: ...
    def age(self, chain: str) -> float: ...
    def apply(
        self,
        stream: IO[bytes],
        parent_chain: str | None = None,
        *,
        diff_id: str = "",
        blob: Descriptor | None = None,
        limits: Any = None,
    ) -> Layer: ...
    def remove(self, chain: str) -> int: ...
    def check(self) -> list[str]: ...
    def prune_temporary(self) -> int: ...
    def chain(self, parent: str | None, diff_id: str) -> str: ...


class Catalogue:
    """The images of the layout at ``layout``; changes nothing."""

    def __init__(self, layout: Path, driver: LayerDriver, default_domain: str) -> None:
        self.driver = driver
        self.default_domain = default_domain
        self.blobs = BlobStore(layout)
        self.index = IndexFile(layout)
        self._documents: dict[str, tuple[Manifest, ImageConfig]] = {}

    def chain_ids(self, config: ImageConfig) -> tuple[str, ...]:
        chains: list[str] = []
        for diff_id in config.rootfs.diff_ids:
            chains.append(self.driver.chain(chains[-1] if chains else None, diff_id))
        return tuple(chains)

    def load(self, digest: str, *, fresh: bool = False) -> tuple[Manifest, ImageConfig]:
        if fresh or digest not in self._documents:
            data = self.blobs.read(digest, "manifest")
            manifest = decode(data, Manifest, f"manifest {digest}")
            name = manifest.config.digest
            config = decode(self.blobs.read(name, "config"), ImageConfig, f"config {name}")
            self._documents[digest] = manifest, config
        return self._documents[digest]

    def by_id(self, entries: Entries) -> dict[str, list[str]]:
        """Image ID → digests of its manifests, of the images that can be read."""
        found: dict[str, list[str]] = {}
        for digest in entries.digests():
            with contextlib.suppress(CorruptStore):  # named by check() and by its reference
                found.setdefault(self.load(digest)[0].config.digest, []).append(digest)
        return found

    def images(self, entries: Entries) -> list[Image]:
        return [self.image(digests, entries) for digests in self.by_id(entries).values()]

    def image(self, digests: list[str], entries: Entries) -> Image:
        manifest, config = self.load(digests[0])
        chains = self.chain_ids(config)
        return Image(
            id=manifest.config.digest,
            manifest_digest=digests[0],
            config=config,
            chain_ids=chains,
            size=sum(self._layer_size(chain) for chain in chains),
            references=tuple(r for r, d in entries.references().items() if d in digests),
        )

    def _layer_size(self, chain: str) -> int:
        try:
            return self.driver.size(chain)
        except CorruptStore:
            return 0  # check() reports it, and using the layer is an error

    def find(self, name: str, entries: Entries) -> tuple[Image, str]:
        """The image, and the reference it was named by ("" when by ID)."""
        digest, by = self._by_reference(name, entries)
        if digest:
            same = [digest]
            return self.image(same, entries), by
        digests = self._by_prefix(name.removeprefix("sha256:"), entries)
        if digests:
            return self.image(digests, entries), ""
        raise NotFound("image", name, self._how_to_get(name))

    def _by_reference(self, name: str, entries: Entries) -> tuple[str, str]:
        if name.startswith("sha256:") or (HEX_PREFIX.match(name) and len(name) == 64):
            return "", ""
        try:
            wanted = refs.parse(name, self.default_domain)
        except UsageError:
            if HEX_PREFIX.match(name):
                return "", ""
            raise
        references = entries.references()
        if not wanted.digest:
            return references.get(str(wanted), ""), str(wanted)
        for known, digest in references.items():
            if digest == wanted.digest and refs.parse(known).name == wanted.name:
                return digest, known
        return "", ""

    def _by_prefix(self, prefix: str, entries: Entries) -> list[str]:
        if not HEX_PREFIX.match(prefix):
            return []
        found = {
            image_id: digests
            for image_id, digests in self.by_id(entries).items()
            if image_id.startswith(f"sha256:{prefix}")
        }
        if len(found) > 1:
            raise UsageError(
                f"image ID prefix {prefix} is ambiguous: {', '.join(map(short, found))}",
                "give more digits",
            )
        return next(iter(found.values()), [])

    def descriptor(self, layer: Layer) -> Descriptor:
        blob = layer.blob or self.driver.layer(layer.chain_id).blob
        if blob is None:
            blob = Descriptor(
                media_type=OCI_LAYER,
                digest=layer.diff_id,
                size=self.blobs.size(layer.diff_id),
            )
        if not self.blobs.has(blob.digest):
            raise CorruptStore(f"blob {blob.digest} of layer {layer.chain_id} is missing")
        return blob

    @staticmethod
    def _how_to_get(name: str) -> str:
        if name.startswith("sha256:") or "@" in name:
            return "vmm images lists what is there"
        repository, _, tag = name.rpartition("/")[2].partition(":")
        ways = f"vmm image import FILE.tar {name}, or vmm build -t {name} PATH"
        if repository in ("busybox", "debian"):
            what = "busybox" if repository == "busybox" else f"debian:{tag or 'bookworm'}"
            return f"nothing is fetched by itself; get it by: vmm image bootstrap {what}"
        return f"nothing is fetched by itself; make it by: {ways}"
