"""Build contexts whose outcome under Docker's classic builder was measured."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.build.conftest import GROUP, PASSWD, Workshop, tar_of
from vmm.engine.resolve import PATH
from vmm.model.errors import VmmError
from vmm.model.image import ContainerConfig
from vmm.storage.tree import walk

#: What is refused by design, with the words that must say so.
REFUSED = {"028": "ONBUILD is not supported"}
#: Contexts with symbolic links, which the stored copies hold as files with the target's name.
LINKED = ("020", "054", "160", "162")
TYPES = {stat.S_IFREG: "0", stat.S_IFLNK: "2", stat.S_IFDIR: "5"}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Workshop:
    """A store with the bases: real busybox and alpine, and one with more users and a bash."""
    if os.geteuid():
        pytest.skip("not root")
    shop = Workshop(tmp_path_factory.mktemp("cases") / "root")
    shop.images.load_layout(shared / "images/busybox-glibc", "mirror.gcr.io/busybox")
    alpine = shop.images.import_tar(
        shared / "images/alpine-3.20.tar.gz", "imported:latest", created="2024-01-01T00:00:00Z"
    )
    layers = [shop.layers.layer(chain) for chain in alpine.chain_ids]
    process = ContainerConfig(cmd=["/bin/sh"], env=[PATH])
    config = msgspec.structs.replace(alpine.config, config=process)
    shop.images.commit(config, layers, ["mirror.gcr.io/alpine"])
    base = tmp_path_factory.mktemp("base")
    bash = '#!/bin/sh\nshift\nexec /bin/sh -xc "$@"\n'
    files = {
        "etc/passwd": PASSWD,
        "etc/group": GROUP,
        "boot": None,
        "usr/local": None,
        "usr/local/bin": None,
        "usr/bin/script": "",
        "bin/bash": bash,
    }
    (base / "base.tar").write_bytes(tar_of(files).getvalue())
    (base / "Dockerfile").write_text('FROM mirror.gcr.io/busybox\nADD base.tar /\nCMD ["bash"]\n')
    shop.build(base, tags=("quay.io/libpod/centos:7",))
    return shop


def _tree(shop: Workshop, image: Any) -> dict[str, list[Any]]:
    fd = shop.view(image)
    try:
        return {entry.path: _described(entry) for entry in walk(fd)}
    finally:
        os.close(fd)


_BASE_TREES: dict[str, dict[str, list[Any]]] = {"": {}}


def _base_tree(shop: Workshop, base: str) -> dict[str, list[Any]]:
    if base not in _BASE_TREES:
        _BASE_TREES[base] = _tree(shop, shop.images.resolve(base))
    return _BASE_TREES[base]


def _described(entry: Any) -> list[Any]:
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


def _numbers() -> list[str]:
    shared = Path(os.environ.get("VMM_TEST_SHARED", Path(__file__).parents[4] / "shared"))
    folder = shared / "data/build-cases"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["none"]


@pytest.mark.parametrize("number", _numbers())
def test_case(number: str, stocked: Workshop, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/build-cases" / number
    expected = json.loads((folder / "expected.json").read_text())
    context = tmp_path / "context"
    shutil.copytree(folder / "context", context, symlinks=True)
    _widen(context, number)
    options = {
        "dockerfile": str(context / expected["dockerfile"]),
        "build_args": expected["build_args"],
    }
    if number in REFUSED:
        with pytest.raises(VmmError, match=REFUSED[number]):
            stocked.build(context, **options)
        return
    if expected["exit"]:
        with pytest.raises(VmmError):
            stocked.build(context, **options)
        assert stocked.left() == []
        return
    image = stocked.build(context, **options)
    assert _config(image) == expected["config"]
    base = _last_base(context / expected["dockerfile"], expected)
    got, before = _tree(stocked, image), _base_tree(stocked, base)
    beyond = {path: entry for path, entry in got.items() if before.get(path) != entry}
    wanted = {p: e for p, e in expected["tree_beyond_base"].items() if p != "boot" or not base}
    assert beyond == wanted
    own = len(stocked.images.resolve(base).chain_ids) if base else 1
    assert len(image.chain_ids) == expected["layers"] + own - 1
    assert stocked.left() == []


def _config(image: Any) -> dict[str, Any]:
    return msgspec.to_builtins(image.config.config)  # type: ignore[no-any-return]


def _widen(context: Path, number: str) -> None:
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
    stages, name = {}, ""
    for line in dockerfile.read_text().splitlines():
        words = line.split()
        if words and words[0].upper() == "FROM":
            name = words[1].replace("$BASE", expected["build_args"].get("BASE", ""))
            name = stages.get(name, name)
            if len(words) == 4:
                stages[words[3]] = name
    return "" if name == "scratch" else name
