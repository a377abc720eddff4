"""The image store: an OCI image layout, and the layers its images are made of."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from vmm.image import reference as refs
from vmm.image.blobs import MAX_DOCUMENT
from vmm.image.catalogue import Catalogue, LayerDriver
from vmm.image.documents import encode
from vmm.model import platform
from vmm.model.errors import Conflict, CorruptStore, UsageError, VmmError
from vmm.model.ids import short
from vmm.model.image import (
    OCI_CONFIG,
    ContainerConfig,
    Descriptor,
    Image,
    ImageConfig,
    Layer,
    Manifest,
    RootFS,
)

Images = list[Image]
Lines = list[str]


class Pruned(NamedTuple):
    """What was removed, in Docker's words, and the bytes that freed."""

    lines: Lines
    freed: int


class ImageStore:
    """Images below ``root/images``; their layers are the driver's.

    ``default_domain`` is put before references without one.
    """

    def __init__(
        self, root: Path | str, driver: LayerDriver, default_domain: str = refs.DEFAULT_DOMAIN
    ) -> None:
        self.layout = Path(root) / "images"
        self.driver = driver
        self.default_domain = default_domain
        self.catalogue = Catalogue(self.layout, driver, default_domain)
        self.blobs = self.catalogue.blobs
        self.index = self.catalogue.index

    # Finding

    def normalise(self, name: str) -> str:
        """The normalised form of a reference."""
        return str(refs.parse(name, self.default_domain))

    def familiar(self, reference: str) -> str:
        """The form of a normalised reference that people type."""
        return refs.familiar(reference, self.default_domain)

    def resolve(self, name: str) -> Image:
        """The image meant by a reference, ID or unique prefix of an ID; NotFound says how to
        get it."""
        return self.catalogue.find(name, self.index.read())[0]

    def list(self) -> Images:
        """Every image that can be read, each once with all its references."""
        return self.catalogue.images(self.index.read())

    def manifest(self, image: Image) -> Manifest:
        return self.catalogue.load(image.manifest_digest)[0]

    # Changing

    def tag(self, source: str, new: str) -> Image:
        """Give the image ``source`` the reference ``new``, which another may lose."""
        target = refs.parse(new, self.default_domain)
        if target.digest:
            raise UsageError(f"refusing to create a tag with a digest reference: {new!r:.140}")
        with self.index.edit() as entries:
            image = self.catalogue.find(source, entries)[0]
            size = self.blobs.size(image.manifest_digest)
            entries.set(str(target), image.manifest_digest, size)
            return self.catalogue.image([image.manifest_digest], entries)

    def commit(
        self,
        config: ImageConfig,
        layers: Sequence[Layer],
        references: Sequence[str] = (),
    ) -> Image:
        """Store an image made of ``layers`` (base first); its rootfs is set from them.

        A reference that another image has moves; that image stays, dangling.
        """
        names = [self.normalise(name) for name in references]
        config = msgspec.structs.replace(
            config, rootfs=RootFS(diff_ids=[layer.diff_id for layer in layers])
        )
        descriptors = [self.catalogue.descriptor(layer) for layer in layers]
        return self.commit_documents(msgspec.json.encode(config), descriptors, layers, names)

    def commit_documents(
        self,
        config: bytes,
        descriptors: Sequence[Descriptor],
        layers: Sequence[Layer],
        references: Sequence[str],
        manifest: bytes = b"",
    ) -> Image:
        """Store the documents of an image (``manifest`` "" is made) and its index entries."""
        if len(config) > MAX_DOCUMENT:
            raise VmmError(f"the image's configuration is larger than {MAX_DOCUMENT} bytes")
        described = Descriptor(
            media_type=OCI_CONFIG, digest=self.blobs.put(config), size=len(config)
        )
        made = Manifest(config=described, layers=list(descriptors))
        manifest = manifest or encode(made)
        with self.index.edit() as entries:
            for layer in layers:
                if not self.driver.has(layer.chain_id):
                    raise Conflict(
                        f"layer {layer.chain_id} was removed meanwhile", "repeat the command"
                    )
            # Again under the lock: a removal may have taken an identical blob in between.
            self.blobs.put(config)
            digest = self.blobs.put(manifest)
            for reference in references or ("",):
                entries.set(reference, digest, len(manifest))
            return self.catalogue.image([digest], entries)

    def remove(
        self,
        name: str,
        *,
        force: bool = False,
        in_use: Mapping[str, Sequence[str]] | None = None,
        running: Collection[str] = (),
        keep_chain_ids: Collection[str] = (),
    ) -> Lines:
        """Remove a reference and, with the last one, the image; what was done, as Docker says it.

        ``in_use`` names the workloads of each image ID, ``running`` those of them that run.
        Layers of other images and of ``keep_chain_ids`` stay.  An image in use that is forced
        only loses its references.
        """
        from vmm.image.removal import remove, remove_broken

        users = dict(in_use or {})
        with self.index.edit() as entries:
            try:
                image, by = self.catalogue.find(name, entries)
            except CorruptStore:
                return remove_broken(self, entries, name)
            return remove(self, entries, image, by, force, users, running, keep_chain_ids)

    def prune(
        self,
        *,
        in_use: Collection[str] = (),
        keep_chain_ids: Collection[str] = (),
        everything: bool = False,
        min_age: float = 3600,
    ) -> Pruned:
        """Remove dangling images (``everything``: all) that no workload of ``in_use`` image IDs
        needs, and whatever no image needs that is older than ``min_age`` seconds."""
        from vmm.image.removal import prune

        with self.index.edit() as entries:
            return prune(self, entries, in_use, keep_chain_ids, everything, min_age)

    def import_tar(
        self,
        source: Path | str | IO[bytes],
        reference: str = "",
        *,
        config: ContainerConfig | None = None,
        message: str = "",
        architecture: str = "",
        created: str = "",
        limits: Any = None,
    ) -> Image:
        """Make an image of one layer from a root file system's tar (compressed or not)."""
        from vmm.image.importing import import_tar

        return import_tar(
            self,
            source,
            reference,
            config=config or ContainerConfig(),
            message=message,
            architecture=architecture,
            created=created,
            limits=limits,
        )

    def load_layout(self, path: Path | str, reference: str = "") -> Image:
        """Take the image for this host's platform from an OCI image layout directory."""
        from vmm.image.layout import load_layout

        return load_layout(self, Path(path), reference)

    # Checking

    def verify(self, image: Image) -> Lines:
        """The image's faults: blobs whose content is not their digest, missing layers."""
        return self._faults_of(image.manifest_digest)

    def check(self) -> Lines:
        """Every fault of the store, each naming its object."""
        try:
            digests = self.index.read().digests()
        except CorruptStore as error:
            return [error.message, *self.driver.check()]
        faults = [fault for digest in digests for fault in self._faults_of(digest)]
        return list(dict.fromkeys([*faults, *self.driver.check()]))

    def _faults_of(self, digest: str) -> Lines:
        try:
            manifest, config = self.catalogue.load(digest, fresh=True)
        except CorruptStore as error:
            return [error.message]
        faults = [self.blobs.fault(layer.digest) for layer in manifest.layers]
        faults += [
            f"layer {chain} of image {short(manifest.config.digest)} is missing"
            for chain in self.catalogue.chain_ids(config)
            if not self.driver.has(chain)
        ]
        return [fault for fault in faults if fault]


def now() -> str:
    """The present in RFC 3339, UTC, with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def host_architecture() -> str:
    """This machine in GOARCH terms (image-spec, config.md, "architecture")."""
    return platform.architecture(os.uname().machine)
