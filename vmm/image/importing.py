"""Images from root file systems."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from vmm.image.compression import decompressed
from vmm.image.store import host_architecture, now
from vmm.model.errors import HostError, InvalidDocument
from vmm.model.image import ContainerConfig, History, Image, ImageConfig

if TYPE_CHECKING:
    from vmm.image.blobs import BlobWriter
    from vmm.image.store import ImageStore


class Tee:
    """A stream that also writes what is read from it."""

    def __init__(self, stream: IO[bytes], writer: BlobWriter) -> None:
        self._stream = stream
        self._writer = writer

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._writer.write(data)
        return data


def import_tar(
    store: ImageStore,
    source: Path | str | IO[bytes],
    reference: str,
    *,
    config: ContainerConfig,
    message: str,
    architecture: str,
    created: str,
    limits: Any,
) -> Image:
    """See ImageStore.import_tar."""
    names = [store.normalise(reference)] if reference else []
    said = str(source) if isinstance(source, Path | str) else "-"
    try:
        if isinstance(source, Path | str):
            with _open(Path(source)) as stream:
                layer = _layer(store, stream, limits)
        else:
            layer = _layer(store, source, limits)
    except InvalidDocument as error:
        where = "standard input" if said == "-" else said
        hint = error.hint or "give the tar archive of a root file system, or an OCI layout"
        raise InvalidDocument(where, error.faults, hint) from None
    created = created or now()
    history = History(created=created, comment=message or f"Imported from {Path(said).name}")
    return store.commit(
        ImageConfig(
            architecture=architecture or host_architecture(),
            os="linux",
            created=created,
            config=config,
            history=[history],
        ),
        [layer],
        names,
    )


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", "give a tar archive, or - for stdin") from None


def _layer(store: ImageStore, stream: IO[bytes], limits: Any) -> Any:
    plain = decompressed(stream)
    try:
        with store.blobs.writer() as writer:
            tee = cast("IO[bytes]", Tee(plain, writer))
            layer = store.driver.apply(tee, None, limits=limits)
            if not writer.size:
                raise InvalidDocument("archive", ["it is empty"])
            writer.commit()
    finally:
        plain.close()
    return layer
