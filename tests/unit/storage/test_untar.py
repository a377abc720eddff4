"""The extractor: everything honest comes out whole, nothing hostile gets out."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.storage.tars import (
    directory,
    hard_link,
    header,
    make_tar,
    member,
    padded,
    symlink,
)
from vmm.model.errors import VmmError
from vmm.storage.tarstream import ArchiveError
from vmm.storage.tree import remove_tree
from vmm.storage.untar import Limits, Unpacked, extract

END = bytes(1024)


def _sized(field: bytes) -> bytes:
    """A header with a raw size field."""
    block = bytearray(header(b"f"))
    block[124:136] = field
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


class Box:
    """A root to unpack into, beside a file that must never change."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root"
        self.root.mkdir()
        self.secret = path / "secret"
        self.secret.write_text("untouched")
        (path / "outside").mkdir()
        self.path = path
        self.fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def unpack(self, archive: io.BytesIO | bytes, **options: object) -> Unpacked:
        stream = io.BytesIO(archive) if isinstance(archive, bytes) else archive
        return extract(stream, self.fd, **options)  # type: ignore[arg-type]

    def layer(self, archive: io.BytesIO | bytes) -> Unpacked:
        return self.unpack(archive, whiteouts="overlay")

    def stat(self, name: str) -> os.stat_result:
        return os.lstat(self.root / name)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    before = len(os.listdir("/proc/self/fd"))
    made = Box(tmp_path)
    yield made
    os.close(made.fd)
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors were left open"
    assert made.secret.read_text() == "untouched"
    assert os.stat(made.secret).st_nlink == 1
    assert os.listdir(tmp_path / "outside") == []
    assert sorted(os.listdir(tmp_path)) == ["outside", "root", "secret"]
    remove_tree(str(made.root))


def test_everything_of_a_file_is_kept(box: Box) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    box.unpack(
        make_tar(
            directory("d", 0o1777, uid=7, gid=8, mtime=1_234_567_890),
            member("d/f", b"hello", mode=0o6755, uid=1000, gid=1001, mtime=987654321.5),
            member("d/cap", b"x", pax={"SCHILY.xattr.user.note": "hi"}),
            hard_link("d/also", "d/f"),
            symlink("d/to", "../../nowhere"),
            member("d/pipe", kind=tarfile.FIFOTYPE, mode=0o622),
            member("d/null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            member("d/disk", kind=tarfile.BLKTYPE, device=(8, 0), mode=0o660, gid=6),
        )
    )
    file, folder = box.stat("d/f"), box.stat("d")
    assert (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid) == (0o6755, 1000, 1001)
    assert file.st_mtime_ns == 987_654_321_500_000_000
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid, folder.st_gid) == (0o1777, 7, 8)
    assert folder.st_mtime == 1_234_567_890
    assert box.stat("d/also").st_ino == file.st_ino
    assert os.readlink(box.root / "d/to") == "../../nowhere"
    assert stat.S_ISFIFO(box.stat("d/pipe").st_mode)
    assert box.stat("d/null").st_rdev == os.makedev(1, 3)
    assert stat.S_IMODE(box.stat("d/null").st_mode) == 0o666
    assert stat.S_ISBLK(box.stat("d/disk").st_mode)
    assert os.getxattr(box.root / "d/cap", "user.note") == b"hi"
    record = b"SCHILY.xattr.security.capability=" + capability + b"\n"
    record = b"%d %s" % (len(record) + 3, record)
    box.unpack(header(b"x", b"x", len(record)) + padded(record) + header(b"ping") + END)
    assert os.getxattr(box.root / "ping", "security.capability") == capability


@pytest.mark.parametrize("format", ["gnu", "posix", "ustar", "v7", "oldgnu"])
def test_formats_of_tar_itself(box: Box, format: str) -> None:
    source = box.path / "root" / "source"
    deep = source / ("long-directory-name-" * 3) / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_text("content")
    (deep / "link").symlink_to("file")
    argv = ["tar", "-C", str(source), f"--format={format}", "-cf", "-", "."]
    archive = subprocess.run(argv, capture_output=True, check=True).stdout
    shutil.rmtree(source)
    box.unpack(archive)
    assert (box.root / deep.relative_to(source) / "link").read_text() == "content"


def test_long_names(box: Box) -> None:
    name = "/".join(["n" * 200] * 10)
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        box.unpack(make_tar(member(name, b"x"), symlink("l", "t" * 300), format=format))
        assert (box.root / name).read_text() == "x"
        assert os.readlink(box.root / "l") == "t" * 300


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files(box: Box, version: str) -> None:
    sparse = box.root / "sparse"
    with open(sparse, "wb") as file:
        for at in range(40):
            file.seek(at << 20)
            file.write(b"data %d" % at)
        file.truncate(64 << 20)
    kind = ["--format=gnu"] if version == "gnu" else [f"--sparse-version={version}"]
    kind += [] if version == "gnu" else ["--format=posix"]
    argv = ["tar", "-C", str(box.root), "-S", *kind, "-cf", "-", "sparse"]
    archive = subprocess.run(argv, capture_output=True, check=True).stdout
    assert len(archive) < 4 << 20
    wanted = sparse.read_bytes()
    sparse.unlink()
    box.unpack(archive)
    assert sparse.read_bytes() == wanted
    assert sparse.stat().st_blocks * 512 < 4 << 20


@pytest.mark.parametrize(
    "entries",
    [
        [member("../secret", b"bad")],
        [member("a/../../secret", b"bad")],
        [member("x", b"bad", pax={"path": "../secret"})],
        [member("x", kind=tarfile.LNKTYPE, link="y", pax={"linkpath": "../secret"})],
        [hard_link("x", "../secret")],
        [hard_link("x", "../../../../../../etc/passwd")],
        [directory("../outside/made")],
        [symlink("../outside/link", "x")],
        [symlink("s", "nowhere"), member("s/f", b"bad")],
        [member("f", b""), member("f/g", b"bad")],
        [hard_link("x", "x")],
        [hard_link("x", "missing")],
        [member("x", kind=tarfile.CHRTYPE, device=(0, 0))],
        [member("x", pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})],
    ],
)
def test_ways_out_are_refused(box: Box, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(ArchiveError):
        box.layer(make_tar(*entries))


def test_links_stay_inside(box: Box) -> None:
    up = "../" * 20
    box.layer(
        make_tar(
            member(str(box.secret), b"absolute"),
            directory("etc"),
            symlink("abs", "/etc"),
            symlink("rel", up + "etc"),
            member("abs/one", b"1"),
            member("rel/two", b"2"),
            symlink("passwd", str(box.secret)),
            member("passwd", b"replaces the link"),
        )
    )
    assert (box.root / str(box.secret).lstrip("/")).read_text() == "absolute"
    assert sorted(os.listdir(box.root / "etc")) == ["one", "two"]
    assert (box.root / "passwd").read_text() == "replaces the link"


def test_hard_link_through_a_link_stays_inside(box: Box) -> None:
    box.layer(
        make_tar(
            symlink("s", str(box.secret)),
            hard_link("h", "s"),
            symlink("up", str(box.path)),
        )
    )
    assert os.readlink(box.root / "h") == str(box.secret)  # the link itself, never its target
    with pytest.raises(ArchiveError):
        box.layer(make_tar(hard_link("stolen", "up/secret")))


def test_a_directory_swapped_for_a_link_is_not_remembered(box: Box) -> None:
    box.unpack(
        make_tar(
            directory("d"),
            member("d/f", b"first"),
            directory("e"),
            symlink("d", "e"),
            member("d/f", b"second"),
        )
    )
    assert os.readlink(box.root / "d") == "e"
    assert (box.root / "e/f").read_text() == "second"


def test_base_keeps_names_below_it(box: Box) -> None:
    (box.root / "app").mkdir()
    (box.root / "there").symlink_to("/app")
    box.unpack(make_tar(member("/f", b"1"), directory(".", 0o711)), base="there")
    assert (box.root / "app/f").read_text() == "1"
    assert stat.S_IMODE(box.stat("app").st_mode) == 0o711
    with pytest.raises(ArchiveError):
        box.unpack(make_tar(member("../g", b"1")), base="app")


def test_files_replace_and_directories_merge(box: Box) -> None:
    (box.root / "d/sub").mkdir(parents=True)
    (box.root / "d/keep").write_text("kept")
    (box.root / "x/full").mkdir(parents=True)
    os.mkfifo(box.root / "pipe")
    box.unpack(
        make_tar(directory("d"), member("d/sub", b"file"), member("x", b"1"), member("pipe", b"2"))
    )
    assert (box.root / "d/keep").read_text() == "kept"
    assert (box.root / "d/sub").read_text() == "file"
    assert (box.root / "x").read_text() == "1"
    assert (box.root / "pipe").read_text() == "2"


def test_whiteouts(box: Box) -> None:
    box.layer(
        make_tar(
            directory("d"),
            member("d/.wh.gone"),
            directory("o"),
            member("o/.wh..wh..opq"),
            directory("both"),
            member(".wh.both"),
            member(".wh..wh.plnk"),
            member("new/.wh..wh..opq"),
        )
    )
    gone = box.stat("d/gone")
    assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
    for name in ("o", "both", "new"):
        assert os.getxattr(box.root / name, "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(box.root)) == ["both", "d", "new", "o"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.x/f"])
def test_whiteouts_of_parents_are_refused(box: Box, name: str) -> None:
    with pytest.raises(ArchiveError):
        box.layer(make_tar(member(name)))


def test_whiteouts_through_links_stay_inside(box: Box) -> None:
    box.layer(
        make_tar(
            symlink("up", str(box.path)),
            directory(str(box.path).lstrip("/")),
            member("up/.wh.secret"),
        )
    )
    inside = box.stat(str(box.secret).lstrip("/"))
    assert stat.S_ISCHR(inside.st_mode)


def test_literal_whiteouts_are_files(box: Box) -> None:
    box.unpack(make_tar(member(".wh.x", b"just a file")))
    assert (box.root / ".wh.x").read_text() == "just a file"


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(b"this is no archive" * 100, id="no archive"),
        pytest.param(header(b"f", size=1000) + b"short", id="cut off"),
        pytest.param(header(b"f")[:200], id="half a header"),
        pytest.param(b"\xff" * 512, id="noise"),
        pytest.param(header(b"f", b"Z") + END, id="unknown type"),
        pytest.param(header(b"x", b"x", 2 << 20) + bytes(2 << 20), id="huge PAX header"),
        pytest.param(header(b"L", b"L", 2 << 20) + bytes(2 << 20), id="huge GNU name"),
        pytest.param(header(b"L", b"L", 1 << 62) + bytes(2048), id="endless GNU name"),
        pytest.param(header(b"L", b"L", 8192) + b"n" * 8192 + header(b"f") + END, id="long name"),
        pytest.param((header(b"x", b"x", 5) + padded(b"5 a=\n")) * 100, id="only headers"),
        pytest.param(header(b"f", uid=b"zz") + END, id="a number that is none"),
        pytest.param(header(b"f", uid=b"\xff" * 8) + END, id="negative owner"),
        pytest.param(_sized(b"\xff" * 12) + END, id="negative size"),
        pytest.param(_sized(b"\x80" + b"\xff" * 11) + END, id="size 2^88"),
        pytest.param(header(b"f", b"S", 0, sparse=b"\xff" * 24) + END, id="negative sparse map"),
    ],
)
def test_damaged_archives_are_refused(box: Box, archive: bytes) -> None:
    with pytest.raises(ArchiveError):
        box.layer(archive)


@pytest.mark.parametrize(
    "records",
    [b"0 a=b\n", b"9 a=b\n", b"a=b\n", b"99999999 a=b\n", b"6 a=bc", b"12 size=-1\n", b" \n",
     b"29 size=99999999999999999999\n", b"18 path=a\0b\n\0\0\0\0", b"17 uid=4294967295\n"],
)  # fmt: skip
def test_damaged_pax_records_are_refused(box: Box, records: bytes) -> None:
    with pytest.raises(ArchiveError):
        box.layer(header(b"x", b"x", len(records)) + padded(records) + header(b"f") + END)


def test_base_256_numbers(box: Box) -> None:
    big = header(b"f", size=0, uid=b"\x80\0\0\0\x10\0\0\0", mtime=b"\xff" * 12)
    box.unpack(big + END)
    assert box.stat("f").st_uid == 0x10000000
    assert box.stat("f").st_mtime == -1


@pytest.mark.parametrize(
    ("limits", "entries"),
    [
        (Limits(content=1000), [member("a", bytes(600)), member("b", bytes(600))]),
        (Limits(entries=2), [member("a"), member("b"), member("c")]),
        (Limits(archive=2048), [member("a", bytes(4096))]),
    ],
)
def test_limits(box: Box, limits: Limits, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(ArchiveError, match="more than"):
        box.unpack(make_tar(*entries), limits=limits)


def test_sparse_bombs_count_as_what_they_claim(box: Box) -> None:
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    size = b"GNU.sparse.realsize=%d\n" % (1 << 62)
    records += b"%d %s" % (len(size) + 3, size)
    data = padded(b"0\n")
    bomb = header(b"x", b"x", len(records)) + padded(records) + header(b"f", size=512) + data
    with pytest.raises(ArchiveError, match="more than"):
        box.unpack(bomb + END)


@pytest.mark.parametrize(
    "where", [b"0\n0\n", b"1\n5\n", b"2\n4\n2\n0\n2\n", b"1\n0\n999\n", b"-1\n"]
)
def test_wrong_sparse_maps_are_refused(box: Box, where: bytes) -> None:
    records = b"22 GNU.sparse.major=1\n27 GNU.sparse.realsize=100\n"
    archive = header(b"x", b"x", len(records)) + padded(records)
    archive += header(b"f", size=512 + 4) + padded(where) + padded(b"data") + END
    with pytest.raises(VmmError):
        box.unpack(archive)


def test_very_deep_trees_are_made_and_removed(box: Box) -> None:
    step = "/".join(["d"] * 1000)
    entries = [
        directory(step),
        symlink("s", step),
        directory("s/" + step),
        symlink("t", "s/" + step),
    ]
    entries += [directory("t/" + step), member("t/" + step + "/f", b"bottom")]
    box.unpack(make_tar(*entries))
    remove_tree(str(box.root))
    assert not box.root.exists()
    box.root.mkdir()


def test_a_name_with_any_byte(box: Box) -> None:
    box.unpack(header(b"\xff\n\x01 '$(x)") + END)
    assert os.listdir(os.fsencode(box.root)) == [b"\xff\n\x01 '$(x)"]


def test_an_attribute_name_with_a_nul_is_refused(box: Box) -> None:
    record = b"27 SCHILY.xattr.user.a\0b=c\n"
    with pytest.raises(ArchiveError, match="attribute"):
        box.unpack(header(b"x", b"x", len(record)) + padded(record) + header(b"f") + END)


def test_mutated_archives_do_no_harm(box: Box) -> None:
    """Random damage ends in an archive that unpacks or in an error that says so."""
    chance = random.Random(20)
    seed = make_tar(
        directory("d"),
        member("d/" + "n" * 120, b"x" * 700, pax={"SCHILY.xattr.user.a": "b"}),
        symlink("d/s", "../.."),
        member("d/s/f", b"y"),
        hard_link("h", "d/s/f"),
        member("d/.wh.z"),
    ).getvalue()
    refused = 0
    for _ in range(400):
        data = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data) - 1024)] = chance.choice(b"\0\xff\x80.0179/xgLKSAZ ")
        for start in range(0, len(data) - 1024, 512):  # keep some checksums right
            block = data[start : start + 512]
            if block[257:262] == b"ustar" and chance.random() < 0.9:
                block[148:156] = b"        "
                data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
        try:
            box.layer(io.BytesIO(data))
        except VmmError:
            refused += 1
    assert 20 < refused < 400
