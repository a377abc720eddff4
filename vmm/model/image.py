"""OCI image documents (image-spec v1.1: config.md, manifest.md, image-index.md, descriptor.md)."""

from typing import Any

import msgspec

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"


class Healthcheck(msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal", kw_only=True):
    """Durations in nanoseconds; 0 inherits."""

    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ContainerConfig(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="pascal", kw_only=True
):
    """The execution parameters of an image (``config``)."""

    user: str = ""
    exposed_ports: dict[str, dict[str, Any]] = {}
    env: list[str] = []
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, dict[str, Any]] = {}
    working_dir: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    shell: list[str] | None = None
    on_build: list[str] = []


class History(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[str] = []


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The image's configuration document; its sha256 is the image's ID."""

    architecture: str
    os: str
    variant: str = ""
    created: str = ""
    author: str = ""
    config: ContainerConfig = ContainerConfig()
    rootfs: RootFS = msgspec.field(default_factory=RootFS)
    history: list[History] = []


class Platform(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    architecture: str
    os: str
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    schema_version: int = msgspec.field(default=2)
    media_type: str = OCI_MANIFEST
    config: Descriptor
    layers: list[Descriptor] = []
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    schema_version: int = msgspec.field(default=2)
    media_type: str = OCI_INDEX
    manifests: list[Descriptor] = []
    annotations: dict[str, str] = {}


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer in the store: its uncompressed digest, its chain ID (image-spec, config.md,
    "Layer ChainID") and the bytes its files occupy."""

    diff_id: str
    chain_id: str
    size: int
    #: The blob that holds it, as it came or was written.
    blob: Descriptor | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image present in the store. ``id`` is the config's digest."""

    id: str
    manifest_digest: str
    config: ImageConfig
    #: Chain IDs, base first.
    chain_ids: tuple[str, ...]
    #: Bytes of its unpacked layers.
    size: int
    #: Normalised references (``docker.io/library/busybox:latest``).
    references: tuple[str, ...] = ()
