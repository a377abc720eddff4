"""What the builder needs of others, as narrow as it needs it; the engine wires them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vmm.engine.build_events import Progress
from vmm.model.backend import RootLayout
from vmm.model.image import ContainerConfig, Image, ImageConfig, Layer


class Images(Protocol):
    """Where base images come from and the finished one goes."""

    @property
    def blobs(self) -> Any: ...
    def normalise(self, name: str) -> str: ...
    def familiar(self, reference: str) -> str: ...
    def resolve(self, name: str) -> Image: ...
    def tag(self, source: str, new: str) -> Image: ...
    def commit(
        self, config: ImageConfig, layers: Sequence[Layer], references: Sequence[str] = ()
    ) -> Image: ...


class Layers(Protocol):
    """The storage driver."""

    def has(self, chain: str) -> bool: ...
    def layer(self, chain: str) -> Layer: ...
    def prepare(self, chain_ids: Sequence[str], directory: Path | str) -> RootLayout: ...
    def view(self, layout: RootLayout) -> int: ...
    def writable_view(self, layout: RootLayout) -> int: ...
    def adopt(self, upper: Path | str, parent_chain: str | None, sink: Any) -> Layer | None: ...


class RunStep(Protocol):
    """Runs one command in a container over ``layout``, its user and working directory from
    ``config``; the exit code. ``volumes``: target → host directory to be mounted there."""

    def __call__(
        self,
        layout: RootLayout,
        config: ContainerConfig,
        argv: tuple[str, ...],
        env: tuple[str, ...],
        *,
        identity: str,
        network: str,
        volumes: Mapping[str, str],
        output: Callable[[bytes], None],
    ) -> int: ...


class Workbench(Protocol):
    """Everything a build works with."""

    images: Images
    layers: Layers
    run: RunStep
    #: The instance's root directory.
    root: Path
    progress: Progress
    architecture: str
    environ: Mapping[str, str]
