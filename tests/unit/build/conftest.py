"""A builder over a real store. RUN is executed for real, in namespaces by unshare(1): the
container engine has tests of its own."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vmm.engine.build import Builder
from vmm.engine.build_events import Event, render
from vmm.image.store import ImageStore
from vmm.model.backend import RootLayout
from vmm.model.image import ContainerConfig, Image
from vmm.model.request import BuildRequest
from vmm.storage.overlay import OverlayDriver
from vmm.storage.tree import walk

SCRIPT = r"""
set -e
cd "$1"; /usr/bin/mount -t overlay overlay -o "lowerdir=$2,upperdir=$3,workdir=$4" "$5"
mount=$5; cwd=$6; shift 6
while [ "$1" != -- ]; do /usr/bin/mount --bind "$1" "$mount$2"; shift 2; done
shift
exec /usr/bin/unshare --root="$mount" --wd="$cwd" "$@"
"""


def run_step(
    layout: RootLayout,
    config: ContainerConfig,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    *,
    identity: str,
    network: str,
    volumes: Mapping[str, str],
    output: Callable[[bytes], None],
) -> int:
    root = Path(layout.upper).parent / "root"
    root.mkdir()
    lowers = ":".join(layout.lowers)
    binds = [part for target, source in volumes.items() for part in (source, target)]
    done = subprocess.run(
        ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child",
         "/bin/sh", "-c", SCRIPT, "sh",
         layout.layers_dir, lowers, layout.upper, layout.work, str(root),
         config.working_dir or "/", *binds, "--", *argv],
        env=dict(item.split("=", 1) for item in env),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=50, check=False,
    )  # fmt: skip
    output(done.stdout)
    return done.returncode


class Workshop:
    """A store, and builds into it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layers = OverlayDriver(root / "layers")
        self.images = ImageStore(root, self.layers)
        self.log = b""
        self.events: list[Event] = []

    def _progress(self, event: Event) -> None:
        self.events.append(event)
        self.log += render(event)

    def build(self, context: Path, **options: object) -> Image:
        self.log, self.events = b"", []
        builder = Builder(
            self.images, self.layers, run_step, self.root, self._progress,
            architecture="amd64", environ={},
        )  # fmt: skip
        return builder.build(BuildRequest(context=str(context), **options))  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        return self.log.decode().splitlines()

    def view(self, image: Image) -> int:
        """Descriptor of the image's files."""
        directory = self.root / f"view-{os.urandom(4).hex()}"
        directory.mkdir()
        layout = self.layers.prepare(image.chain_ids, directory)
        bare = RootLayout(driver="overlay", layers_dir=layout.layers_dir, lowers=layout.lowers[1:])
        return self.layers.view(bare)

    def files(self, image: Image) -> dict[str, os.stat_result]:
        fd = self.view(image)
        try:
            return {entry.path: entry.status for entry in walk(fd)}
        finally:
            os.close(fd)

    def read(self, image: Image, path: str) -> str:
        fd = self.view(image)
        try:
            with open(os.open(path, os.O_RDONLY, dir_fd=fd)) as file:
                return file.read()
        finally:
            os.close(fd)

    def left(self) -> list[str]:
        """What a build left behind beside layers, images and cache."""
        builds = self.root / "builds"
        return os.listdir(builds) if builds.is_dir() else []


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    if os.geteuid():
        pytest.skip("not root")
    return Workshop(tmp_path / "root")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    path.mkdir()
    return path


PASSWD = """root:x:0:0:root:/root:/bin/sh
bin:x:2:2:bin:/bin:/bin/sh
lp:x:7:7:lp:/var/spool/lpd:/bin/sh
"""
GROUP = "root:x:0:\nbin:x:2:\nadm:x:4:\nlp:x:7:\nmail:x:8:\n"


def tar_of(files: Mapping[str, str | None]) -> io.BytesIO:
    """A tar of files (text) and directories (None)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if text is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                data = text.encode()
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out
