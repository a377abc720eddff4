"""The command line builds contexts whose outcome under Docker's classic builder was measured."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import SHARED
from tests.instance import Instance
from vmm.image.store import ImageStore
from vmm.model.backend import RootLayout
from vmm.model.errors import NotFound
from vmm.model.image import Image
from vmm.storage.overlay import OverlayDriver
from vmm.storage.tree import Entry, walk

#: What is refused by design, with the words that must say so.
REFUSED = {"028": "ONBUILD is not supported"}
#: Contexts with symbolic links, which the stored copies hold as files with the target's name.
LINKED = ("020", "054", "160", "162")
TYPES = {stat.S_IFREG: "0", stat.S_IFLNK: "2", stat.S_IFDIR: "5"}

PASSWD = """root:x:0:0:root:/root:/bin/sh
bin:x:2:2:bin:/bin:/bin/sh
lp:x:7:7:lp:/var/spool/lpd:/bin/sh
"""
GROUP = "root:x:0:\nbin:x:2:\nadm:x:4:\nlp:x:7:\nmail:x:8:\n"
BASH = '#!/bin/sh\nshift\nexec /bin/sh -xc "$@"\n'
CENTOS = """FROM box
COPY etc /etc
COPY --chmod=755 bash /bin/bash
RUN mkdir -p /boot /usr/local/bin && : > /usr/bin/script
CMD ["bash"]
"""
ALPINE = """FROM imported
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["/bin/sh"]
"""


#: What stands in for the cases' bases, by the last part of their names.
OTHERS = {"alpine": ALPINE, "centos": CENTOS}


def _bases(cases: Path) -> set[str]:
    """Every published image that a case is built from."""
    texts = (path.read_text() for path in cases.glob("*/context/**/*ockerfile*") if path.is_file())
    names = (name for text in texts for name in re.findall(r"(?im)^FROM +(\S+/\S+)", text))
    return set(names)


class Bench:
    """An instance with the bases, and a look into the images that it builds."""

    def __init__(self, instance: Instance) -> None:
        self.vmm = instance
        self._layers = OverlayDriver(instance.root / "layers")
        self._images = ImageStore(instance.root, self._layers)
        self._trees: dict[str, dict[str, list[Any]]] = {"": {}}

    def resolve(self, name: str) -> Image:
        return self._images.resolve(name)

    def base_tree(self, name: str) -> dict[str, list[Any]]:
        if name not in self._trees:
            self._trees[name] = self.tree(self.resolve(name))
        return self._trees[name]

    def tree(self, image: Image) -> dict[str, list[Any]]:
        """Every file of the image: type, mode, uid, gid, size, link, digest, attributes."""
        directory = self.vmm.root / "view"
        directory.mkdir()
        try:
            layout = self._layers.prepare(image.chain_ids, directory)
            bare = RootLayout(
                driver="overlay", layers_dir=layout.layers_dir, lowers=layout.lowers[1:]
            )
            fd = self._layers.view(bare)
        finally:
            shutil.rmtree(directory)
        try:
            return {entry.path: _described(entry) for entry in walk(fd)}
        finally:
            os.close(fd)


@pytest.fixture(scope="module")
def bench(
    instance: Instance, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """The bases: real busybox and alpine, and one with more users and a bash."""
    images, folder = shared / "images", tmp_path_factory.mktemp("bases")
    instance.run("image", "import", str(images / "busybox-glibc"), "box")
    instance.run("image", "import", str(images / "alpine-3.20.tar.gz"), "imported")
    (folder / "etc").mkdir()
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/group").write_text(GROUP)
    (folder / "bash").write_text(BASH)
    for base in sorted(_bases(shared / "data/build-cases")):
        kind = base.rpartition("/")[2].partition(":")[0]
        if kind == "busybox":
            instance.run("tag", "box", base)
        elif kind in OTHERS:
            (folder / "Dockerfile").write_text(OTHERS[kind])
            instance.run("build", "-t", base, str(folder))
    yield Bench(instance)
    everything = instance.out("images", "-aq", "--no-trunc").split()
    kept = instance.out("images", "-q", "--no-trunc", "busybox").split()
    doomed = [image for image in dict.fromkeys(everything) if image not in kept]
    instance.run("rmi", "-f", *doomed)


def _numbers() -> list[str]:
    folder = SHARED / "data/build-cases"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["none"]


@pytest.mark.parametrize("number", _numbers())
def test_case(number: str, bench: Bench, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/build-cases" / number
    expected = json.loads((folder / "expected.json").read_text())
    context = tmp_path / "context"
    shutil.copytree(folder / "context", context, symlinks=True)
    _restore(context, number)
    argv = ["build", "-q", "-t", f"case:{number}", "-f", str(context / expected["dockerfile"])]
    for name, value in expected["build_args"].items():
        argv += ["--build-arg", f"{name}={value}"]
    done = bench.vmm.run(*argv, str(context), check=False)
    if expected["exit"] or number in REFUSED:
        assert done.returncode not in (0, 125), done.stdout + done.stderr
        assert REFUSED.get(number, "") in done.stderr
        with pytest.raises(NotFound):
            bench.resolve(f"case:{number}")
    else:
        assert done.returncode == 0, done.stderr + done.stdout
        _compare(bench, bench.resolve(f"case:{number}"), context, expected)
    assert bench.vmm.traces() == []


def _compare(bench: Bench, image: Image, context: Path, expected: dict[str, Any]) -> None:
    assert msgspec.to_builtins(image.config.config) == expected["config"]
    base = _last_base(context / expected["dockerfile"], expected)
    got, before = bench.tree(image), bench.base_tree(base)
    beyond = {path: entry for path, entry in got.items() if before.get(path) != entry}
    wanted = {p: e for p, e in expected["tree_beyond_base"].items() if p != "boot" or not base}
    assert beyond == wanted
    own = len(bench.resolve(base).chain_ids) if base else 1
    assert len(image.chain_ids) == expected["layers"] + own - 1


def _described(entry: Entry) -> list[Any]:
    status = entry.status
    kind = TYPES[stat.S_IFMT(status.st_mode)]
    link, digest, size = "", "", 0
    if kind == "2":
        link = os.readlink(entry.name, dir_fd=entry.parent)
    elif kind == "0":
        with open(os.open(entry.name, os.O_RDONLY, dir_fd=entry.parent), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        size = status.st_size
    mode = oct(stat.S_IMODE(status.st_mode))
    return [kind, mode, status.st_uid, status.st_gid, size, link, digest, []]


def _restore(context: Path, number: str) -> None:
    """Give the files the modes they had when the outcomes were measured (umask 002)."""
    for directory, _, names in os.walk(context):
        os.chmod(directory, 0o775)
        for name in names:
            path = os.path.join(directory, name)
            if number in LINKED:
                _restore_link(path)
            if not os.path.islink(path):
                narrow = (number, name) == ("054", "Dockerfile")
                executable = os.stat(path).st_mode & 0o111
                os.chmod(path, (0o644 if narrow else 0o664) | executable)


def _restore_link(path: str) -> None:
    """A file that holds nothing but the name of another one was a link to it."""
    with open(path) as file:
        target = file.read(100)
    if target and "\n" not in target and os.path.exists(f"{os.path.dirname(path)}/{target}"):
        os.unlink(path)
        os.symlink(target, path)


def _last_base(dockerfile: Path, expected: dict[str, Any]) -> str:
    """The image that the last stage begins with; "" for scratch."""
    stages: dict[str, str] = {}
    name = ""
    for line in dockerfile.read_text().splitlines():
        words = line.split()
        if words and words[0].upper() == "FROM":
            name = words[1].replace("$BASE", expected["build_args"].get("BASE", ""))
            name = stages.get(name, name)
            if len(words) == 4:
                stages[words[3]] = name
    return "" if name == "scratch" else name
