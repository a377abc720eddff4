"""Images and archives made to do harm: confined or refused, in bounded time, leaving nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.instance import Instance
from tests.unit.storage.tars import (
    directory,
    hard_link,
    header,
    make_tar,
    member,
    padded,
    symlink,
)

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def busybox() -> tuple[tarfile.TarInfo, bytes]:
    """The one program that an image needs to be run."""
    return member("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the host that nothing may touch."""
    path = tmp_path / "victim" / "file"
    path.parent.mkdir()
    path.write_text("of the host")
    return path


@pytest.fixture
def store(vmm: Instance) -> Iterator[Instance]:
    """The instance; the images that a test made go, and with them all that they brought."""
    before = _stored(vmm)
    yield vmm
    for workload in vmm.out("ps", "-aq").split():
        vmm.run("rm", "-fv", workload)
    mine = vmm.out("images", "-q", "--no-trunc", "--filter", "reference=hostile").split()
    if mine:
        vmm.run("rmi", "-f", *dict.fromkeys(mine))
    assert _stored(vmm) == before


def _stored(vmm: Instance) -> list[str]:
    """Names of the layers and blobs."""
    layers, blobs = vmm.root / "layers", vmm.root / "images" / "blobs"
    return sorted(str(path) for path in [*layers.iterdir(), *blobs.glob("*/*")])


def imported(vmm: Instance, archive: io.BytesIO | bytes, tmp_path: Path, code: int = 0) -> str:
    """Import an archive as ``hostile``; what was said."""
    path = tmp_path / "hostile.tar"
    path.write_bytes(archive if isinstance(archive, bytes) else archive.getvalue())
    done = vmm.run("image", "import", str(path), "hostile", check=False)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr
    return done.stderr


def inside(vmm: Instance, *argv: str) -> str:
    return vmm.out("run", "--rm", "--network=none", "hostile", "/bin/busybox", *argv)


def test_names_and_links_that_lead_out_stay_inside(
    store: Instance, tmp_path: Path, victim: Path, busybox: tuple[tarfile.TarInfo, bytes]
) -> None:
    out = str(victim.parent)
    up = "../" * 20
    archive = make_tar(
        busybox,
        member(out.lstrip("/") + "/plain", b"plain"),
        symlink("way", out),
        member("way/file", b"through a link"),
        symlink("rel", up + out.lstrip("/")),
        member("rel/file", b"through a relative link"),
        member("good", b"pax", pax={"path": f"/{out}/absolute"}),
    )
    imported(store, archive, tmp_path)
    assert os.listdir(victim.parent) == ["file"] and victim.read_text() == "of the host"
    assert inside(store, "cat", f"{out}/plain", f"{out}/file") == "plainthrough a relative link"


@pytest.mark.parametrize(
    "entry",
    [
        member("../../../../../../../../tmp/escaped", b"x"),
        member("a/../../b", b"x"),
        member("good", b"x", pax={"path": "../../../../../../tmp/escaped"}),
        hard_link("copy", "../../../../../../../../etc/shadow"),
        hard_link("copy", "/etc/shadow"),
        member("etc/.wh...", b""),
        member(".wh..", b""),
    ],
    ids=["dots", "middle", "pax", "hardlink", "absolute-link", "whiteout-parent", "whiteout-self"],
)
def test_ways_out_are_refused_or_confined(
    store: Instance, tmp_path: Path, entry: tuple[tarfile.TarInfo, bytes]
) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(make_tar(entry).getvalue())
    begin = os.stat("/etc/shadow").st_nlink
    done = store.run("image", "import", str(path), "hostile", check=False)
    assert done.returncode in (0, 1) and "unexpected" not in done.stderr, done.stderr
    assert not os.path.exists("/tmp/escaped") and os.stat("/etc/shadow").st_nlink == begin
    assert sorted(os.listdir(store.root / "layers" / "..")) == sorted(os.listdir(store.root))
    if done.returncode:
        assert str(path) in done.stderr


def test_whiteouts_of_a_later_layer_stay_inside(
    store: Instance, tmp_path: Path, victim: Path, busybox: tuple[tarfile.TarInfo, bytes]
) -> None:
    first = make_tar(busybox, symlink("way", str(victim.parent)), directory("dir"))
    second = make_tar(member("way/.wh.file", b""), member("way/.wh..wh..opq", b""),
                      hard_link("stolen", "way/file"))  # fmt: skip
    layout = Layout(tmp_path / "layout", [first.getvalue(), second.getvalue()])
    done = store.run("image", "import", str(layout.path), "hostile", check=False)
    assert done.returncode in (0, 1), done.stderr
    assert victim.read_text() == "of the host" and victim.stat().st_nlink == 1


class Layout:
    """An OCI image layout; each part can be made wrong before write()."""

    def __init__(self, path: Path, layers: list[bytes]) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        diffs = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
        self.config: Json = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        self.layers = [self.blob(layer, LAYER) for layer in layers]
        self.manifest: Json = {"schemaVersion": 2, "mediaType": MANIFEST}
        self.write()

    def blob(self, data: bytes, kind: str) -> Json:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}

    def write(self, **more: Any) -> None:
        config = self.blob(json.dumps(self.config).encode(), CONFIG)
        manifest = {**self.manifest, "config": config, "layers": self.layers, **more}
        self.describe(self.blob(json.dumps(manifest).encode(), MANIFEST))

    def describe(self, *manifests: Json, **more: Any) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests), **more}
        (self.path / "index.json").write_text(json.dumps(index))


def _wrong_layouts(layout: Layout, victim: Path) -> Iterator[str]:
    """Make one thing wrong after another; yields what."""
    good_layer, good_diff = dict(layout.layers[0]), layout.config["rootfs"]["diff_ids"][0]
    for digest in ("sha256:../../../../etc/passwd", "sha256:" + "0" * 64, "md5:x", "sha512:1"):
        layout.layers[0] = {**good_layer, "digest": digest}
        layout.write()
        yield f"digest {digest}"
    for size in (good_layer["size"] + 1, good_layer["size"] - 1, 1 << 63, -1):
        layout.layers[0] = {**good_layer, "size": size}
        layout.write()
        yield f"size {size}"
    layout.layers[0] = good_layer
    layout.config["rootfs"]["diff_ids"] = ["sha256:" + "1" * 64]
    layout.write()
    yield "diff_id"
    layout.config["rootfs"]["diff_ids"] = [good_diff, good_diff]
    layout.write()
    yield "number of diff_ids"
    layout.config["rootfs"]["diff_ids"] = [good_diff]
    layout.write(manifests=[])
    yield "manifest with manifests"
    layout.write(mediaType=INDEX)
    yield "manifest of another type"
    layout.write()
    good = json.loads((layout.path / "index.json").read_text())["manifests"][0]
    layout.describe(good, layers=[])
    yield "index with layers"
    layout.describe({**good, "mediaType": INDEX})
    yield "descriptor of another type"
    layout.describe(good)
    blob = layout.path / "blobs/sha256" / good_layer["digest"].removeprefix("sha256:")
    blob.unlink()
    blob.symlink_to(victim)
    yield "layer is a link to a file of the host"
    blob.unlink()
    os.mkfifo(blob)
    yield "layer is a FIFO"
    big = {**layout.manifest, "annotations": {"x": "y" * (5 << 20)}}
    layout.describe(layout.blob(json.dumps(big).encode(), MANIFEST))
    yield "manifest of 5 MiB"


def test_wrong_layouts_are_refused_and_store_nothing(
    store: Instance, tmp_path: Path, victim: Path
) -> None:
    layout = Layout(tmp_path / "layout", [make_tar(member("file", b"x")).getvalue()])
    before = _stored(store)
    for what in _wrong_layouts(layout, victim):
        done = store.run("image", "import", str(layout.path), "hostile", check=False)
        assert done.returncode in (1, 125), (what, done)
        assert done.stderr.startswith("vmm: ") and "unexpected" not in done.stderr, (what, done)
        assert _stored(store) == before, what


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory-link", "sparse"])
def test_odd_places_in_an_image_neither_hang_nor_lead_out(
    store: Instance,
    tmp_path: Path,
    victim: Path,
    busybox: tuple[tarfile.TarInfo, bytes],
    kind: str,
) -> None:
    mounted = ["proc", "sys", "dev"]
    files = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd", "etc/group"]
    places: dict[str, Callable[[str], tuple[tarfile.TarInfo, bytes]]] = {
        "link": lambda name: symlink(name, str(victim)),
        "fifo": lambda name: member(name, kind=tarfile.FIFOTYPE),
        "device": lambda name: member(name, kind=tarfile.CHRTYPE, device=(1, 5)),
        "directory-link": lambda name: symlink(name, str(victim.parent)),
        "sparse": lambda name: member(name),
    }
    entries = [busybox, directory("etc")]
    entries += [places[kind](name) for name in (mounted if kind == "directory-link" else files)]
    archive = make_tar(*entries).getvalue()
    if kind == "sparse":
        archive = _sparse(b"etc/passwd", 1 << 30) + make_tar(busybox).getvalue()
    imported(store, archive, tmp_path)
    begin = time.monotonic()
    done = store.run(
        "run", "--rm", "--network=none", "hostile", "/bin/busybox", "cat", "/proc/self/comm",
        check=False, timeout=20,
    )  # fmt: skip
    assert time.monotonic() - begin < 10
    assert done.returncode in (0, 125) and "unexpected" not in done.stderr, done
    assert done.returncode == 125 or done.stdout == "busybox\n"
    named = store.run("run", "--rm", "--network=none", "-u", "nobody", "hostile",
                      "/bin/busybox", "id", check=False, timeout=20)  # fmt: skip
    assert named.returncode == 125 and "unexpected" not in named.stderr, named
    assert victim.read_text() == "of the host" and os.listdir(victim.parent) == ["file"]


def _sparse(name: bytes, size: int) -> bytes:
    """A GNU sparse file that is one hole."""
    return header(name, b"S", 0, magic=b"ustar  \0", realsize=b"%011o\0" % size)


def test_bombs_end_at_a_limit(store: Instance, tmp_path: Path) -> None:
    before, memory = _stored(store), _peak()
    huge = header(b"big", size=8**11 - 1) + b"x"
    vast = header(b"big", b"S", 0, magic=b"ustar  \0", realsize=b"\x80" + b"\xff" * 11)
    hole = _sparse(b"big", 8**11 - 1) * 20
    longest = header(b"././@LongLink", b"L", 1 << 30) + bytes(1 << 20)
    for archive in (huge, vast, hole, longest):
        imported(store, archive + bytes(1024), tmp_path, code=1)
        assert _stored(store) == before
    pax = b"%d path=%s\n" % (20, b"x" * 8)
    imported(store, header(b"pax", b"x", 1 << 30) + padded(pax), tmp_path, code=1)
    assert _stored(store) == before
    # 256 MiB of nothing behind the archive's end are read past, not kept.
    imported(store, gzip.compress(bytes(1 << 28), 1), tmp_path)
    assert _peak() - memory < 128 << 10


def _peak() -> int:
    """KiB that the largest child took so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_an_image_of_127_layers_runs_and_one_of_more_is_refused(
    store: Instance, tmp_path: Path, busybox: tuple[tarfile.TarInfo, bytes]
) -> None:
    layers = [make_tar(busybox).getvalue()]
    layers += [make_tar(member(f"file{n}", b"%d" % n)).getvalue() for n in range(127)]
    many = Layout(tmp_path / "many", layers[:127])
    store.run("image", "import", str(many.path), "hostile")
    assert inside(store, "cat", "/file0", "/file125") == "0125"
    before = _stored(store)
    more = Layout(tmp_path / "more", layers)
    done = store.run("image", "import", str(more.path), "hostile:more", check=False)
    assert done.returncode == 1 and "127" in done.stderr, done
    assert _stored(store) == before
