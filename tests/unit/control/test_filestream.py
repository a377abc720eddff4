"""File streams: what was written is read, whatever the pieces; nothing hostile gets through,
into an archive, out of one, or onto this host."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.model import filestream as fs
from vmm.model.errors import InvalidDocument, VmmError
from vmm.model.filestream import CopyFailed, Entry, StreamReader, StreamWriter
from vmm.model.launch import encode_record
from vmm.storage.streamtar import stream_to_tar, tar_to_stream
from vmm.storage.streamtree import stream_to_tree
from vmm.storage.treestream import tree_to_stream
from vmm.storage.untar import Limits

Files = list[tuple[Entry, bytes]]
DAY = 86_400 * 10**9


def write(files: Files) -> bytes:
    out = io.BytesIO()
    writer = StreamWriter(out.write)
    for entry, content in files:
        writer.entry(entry._replace(size=len(content)))
        writer.content(content)
    writer.end()
    return out.getvalue()


def reader(stream: bytes, piece: int = 1 << 20) -> StreamReader:
    source = io.BytesIO(stream)
    return StreamReader(lambda size: source.read(min(size, piece)))


def read(given: StreamReader) -> Files:
    return [(entry, b"".join(iter(given.read, b""))) for entry in given]


part = st.binary(min_size=1, max_size=12).filter(
    lambda b: not set(b) & {0, 47} and b not in (b".", b"..")
)
name = st.lists(part, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))
ids = st.integers(0, 0xFFFFFFFE)
entries = st.builds(
    Entry,
    name=name,
    type=st.sampled_from("dfcbp"),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    size=st.just(0),
    link=st.just(""),
    mtime=st.integers(-(1 << 61), 1 << 61),
    rdev=st.integers(0, 1 << 32),
    xattrs=st.lists(
        st.tuples(part.map(lambda b: "user." + os.fsdecode(b)), st.binary(max_size=20)), max_size=2
    ).map(tuple),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(entries, st.binary(max_size=300)), max_size=5), st.integers(1, 400))
def test_what_was_written_is_read(files: Files, piece: int) -> None:
    sized = [(e._replace(size=len(c)), c) if e.type == "f" else (e, b"") for e, c in files]
    assert read(reader(write(sized), piece)) == sized


@given(st.lists(st.tuples(entries, st.binary(max_size=50)), max_size=3), st.data())
def test_damage_is_refused_or_harmless(files: Files, data: st.DataObject) -> None:
    stream = bytearray(write([(e, c if e.type == "f" else b"") for e, c in files]))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] = data.draw(st.integers(0, 255))
    try:
        found = read(reader(bytes(stream)))
    except VmmError:
        return
    assert all(fs.is_name(entry.name) for entry, _ in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(VmmError):
        read(reader(data))


@pytest.mark.parametrize(
    "parts",
    [
        ("entry", "../x", "f", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "/x", "f", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "a\0b", "f", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "a//b", "f", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "x", "d", "644", "0", "0", "5", "0", "0", ""),
        ("entry", "x", "f", "644", "0", "0", "-1", "0", "0", ""),
        ("entry", "x", "f", "644", "0", "0", "9" * 19, "0", "0", ""),
        ("entry", "x", "f", "99", "0", "0", "0", "0", "0", ""),
        ("entry", "x", "f", "17777", "0", "0", "0", "0", "0", ""),
        ("entry", "x", "f", "644", "4294967295", "0", "0", "0", "0", ""),
        ("entry", "x", "h", "644", "0", "0", "0", "0", "0", "../y"),
        ("entry", "x", "h", "644", "0", "0", "0", "0", "0", "x"),
        ("entry", "x", "l", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "x", "s", "644", "0", "0", "0", "0", "0", ""),
        ("entry", "x", "f", "644", "0", "0", "0", "0", "0", "", "user.x"),
        ("entry", "x", "f", "644", "0", "0", "0", "0", "0", "", "user.\0x", ""),
    ],
)
def test_entries_that_may_not_be(parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidDocument):
        read(reader(encode_record(parts) + encode_record(("end",))))


def test_a_huge_entry_is_not_kept() -> None:
    asked = 0

    def source(size: int) -> bytes:
        nonlocal asked
        asked += size
        return b"\x02\0\0\0\xff\xff\xff\x7f" + bytes(size - 8) if asked == size else bytes(size)

    with pytest.raises(InvalidDocument, match="more than"):
        read(StreamReader(source))
    assert asked < 8 << 20


def test_an_error_is_told_with_its_number() -> None:
    stream = write([(Entry("x", "f"), b"1")])[: -len(encode_record(("end",)))]
    stream += encode_record(("error", "28", "no\x1b[2J room"))
    with pytest.raises(CopyFailed, match=r"no\\x1b\[2J room") as caught:
        read(reader(stream))
    assert caught.value.errno == 28


def test_rebasing() -> None:
    assert fs.rebase(Entry(".", "d"), "new").name == "new"
    assert fs.rebase(Entry("a/b", "f"), "new").name == "new/a/b"
    assert fs.rebase(Entry("a", "h", link="b"), "new").link == "new/b"
    assert fs.rebase(Entry("a", "l", link="b"), "new").link == "b"
    assert fs.rebase(Entry("a", "f"), ".").name == "a"


def test_a_writer_keeps_to_the_size() -> None:
    writer = StreamWriter(lambda data: None)
    writer.entry(Entry("x", "f", size=3))
    with pytest.raises(ValueError, match="more content"):
        writer.content(b"four")
    writer.content(b"12")
    with pytest.raises(ValueError, match="1 bytes"):
        writer.end()


# ---- archives


def to_tar(files: Files) -> tarfile.TarFile:
    out = io.BytesIO()
    stream_to_tar(reader(write(files)), out)
    return tarfile.open(fileobj=io.BytesIO(out.getvalue()))


def test_a_stream_as_a_tar() -> None:
    files: Files = [
        (Entry("top", "d", 0o755), b""),
        (Entry("top/" + "n" * 200, "f", 0o4711, 1 << 30, 7, mtime=DAY + 5), b"x" * 700),
        (Entry("top/link", "l", 0o777, link="../elsewhere"), b""),
        (Entry("top/hard", "h", link="top/" + "n" * 200), b""),
        (Entry("top/null", "c", 0o666, rdev=os.makedev(1, 3)), b""),
        (Entry("top/empty", "f", xattrs=(("user.a", b"\0b\n"),)), b""),
    ]
    with to_tar(files) as tar:
        found = {member.name: member for member in tar}
        assert list(found) == [entry.name for entry, _ in files]
        file = found["top/" + "n" * 200]
        assert (file.mode, file.uid, file.gid, file.mtime) == (0o4711, 1 << 30, 7, 86_400)
        content = tar.extractfile(file)
        assert content and content.read() == b"x" * 700
        assert found["top/link"].linkname == "../elsewhere"
        assert found["top/hard"].islnk() and found["top/hard"].linkname == file.name
        assert (found["top/null"].devmajor, found["top/null"].devminor) == (1, 3)
        assert found["top/empty"].pax_headers["SCHILY.xattr.user.a"] == "\0b\n"


def from_tar(add: Callable[[tarfile.TarFile], object], limits: Limits | None = None) -> Files:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        add(tar)
    out = io.BytesIO()
    tar_to_stream(io.BytesIO(data.getvalue()), StreamWriter(out.write), limits=limits)
    return read(reader(out.getvalue()))


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, link
    return info


@settings(max_examples=40)
@given(st.lists(st.tuples(entries, st.binary(max_size=50)), max_size=4))
def test_there_and_back_by_tar(files: Files) -> None:
    """Through a tar and back: everything but parts of a second."""
    sized = [
        (
            entry._replace(
                size=len(content) if entry.type == "f" else 0,
                mtime=entry.mtime // 10**9 * 10**9,
                rdev=os.makedev(entry.rdev % 4096, 3) if entry.type in "cb" else 0,
                xattrs=tuple(sorted(dict(entry.xattrs).items())),
            ),
            content if entry.type == "f" else b"",
        )
        for entry, content in files
        if "=" not in "".join(key for key, _ in entry.xattrs)
    ]
    tar, out = io.BytesIO(), io.BytesIO()
    stream_to_tar(reader(write(sized)), tar)
    tar_to_stream(io.BytesIO(tar.getvalue()), StreamWriter(out.write))
    found = read(reader(out.getvalue()))
    assert [(e._replace(xattrs=tuple(sorted(e.xattrs))), c) for e, c in found] == sized


def test_names_of_a_tar_are_made_plain() -> None:
    def add(tar: tarfile.TarFile) -> None:
        for name in ("./a", "/b", "c/../d", "e//f/"):
            tar.addfile(member(name))
        tar.addfile(member("./", tarfile.DIRTYPE))
        tar.addfile(member("g", tarfile.LNKTYPE, "./a"))

    found = [entry for entry, _ in from_tar(add)]
    assert [entry.name for entry in found] == ["a", "b", "d", "e/f", ".", "g"]
    assert found[-1].link == "a"


@pytest.mark.parametrize(
    "bad",
    [
        member("../x"),
        member("a/../../x"),
        member("x", tarfile.LNKTYPE, "../y"),
        member("x", tarfile.LNKTYPE, "x"),
        member("x", tarfile.SYMTYPE, ""),
        member("n" * 256),
    ],
    ids=lambda info: f"{info.name[:9]}-{info.linkname}",
)
def test_hostile_tars(bad: tarfile.TarInfo) -> None:
    with pytest.raises(VmmError):
        from_tar(lambda tar: tar.addfile(bad))


def test_tars_are_bounded() -> None:
    def add(tar: tarfile.TarFile) -> None:
        for number in range(10):
            info = member(str(number))
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes(1000)))

    assert len(from_tar(add)) == 10
    for limits in (Limits(entries=9), Limits(content=9999)):
        with pytest.raises(VmmError, match="more than"):
            from_tar(add, limits)


def test_a_sparse_member_has_its_zeroes(tmp_path: Path) -> None:
    import subprocess

    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(3 << 20)
        os.pwrite(file.fileno(), b"here", 1 << 20)
    for form in ("gnu", "posix"):
        words = ["tar", f"--format={form}", "-S", "-cf", "-", "-C", str(tmp_path), "sparse"]
        tar = subprocess.run(words, capture_output=True, check=True).stdout
        assert len(tar) < 1 << 20
        out = io.BytesIO()
        tar_to_stream(io.BytesIO(tar), StreamWriter(out.write))
        [(entry, content)] = read(reader(out.getvalue()))
        assert (entry.name, content) == ("sparse", (tmp_path / "sparse").read_bytes())


# ---- this host's files


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "target").mkdir()
    fd = os.open(tmp_path / "target", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def from_tree(path: Path, follow: bool = False) -> Files:
    out = io.BytesIO()
    tree_to_stream(str(path), StreamWriter(out.write), follow=follow)
    return read(reader(out.getvalue()))


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_tree_there_and_back(tmp_path: Path, target: int) -> None:
    top = tmp_path / "tree"
    (top / "dir/below").mkdir(parents=True)
    (top / "dir/below/file").write_bytes(b"")
    (top / "dir/file").write_bytes(b"content")
    os.link(top / "dir/file", top / "hard")
    (top / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo", 0o600)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(top / "dir/file", "user.a", b"b")
    os.chown(top / "dir/file", 3, 4)
    (top / "dir/file").chmod(0o4755)
    with open(top / "sparse", "wb") as file:
        file.truncate(20 << 20)
        os.pwrite(file.fileno(), b"x", 9_999_999)
    os.utime(top / "dir", ns=(DAY, DAY + 7))
    files = from_tree(top)
    assert files[0][0].name == "."
    stream_to_tree(reader(write(files), 1000), target, owners=True)
    made = tmp_path / "target"
    again = from_tree(made)
    assert [x for x in again if x[0].name != "."] == [x for x in files if x[0].name != "."]
    assert (made / "hard").stat().st_ino == (made / "dir/file").stat().st_ino
    assert (made / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (made / "dir").stat().st_mtime_ns == DAY + 7


def test_single_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    assert [(e.name, e.type, c) for e, c in from_tree(tmp_path / "file")] == [(".", "f", b"1")]
    assert [(e.type, e.link) for e, _ in from_tree(tmp_path / "link")] == [("l", "file")]
    assert [(e.type, c) for e, c in from_tree(tmp_path / "link", follow=True)] == [("f", b"1")]
    with pytest.raises(FileNotFoundError):
        from_tree(tmp_path / "missing")


@pytest.mark.parametrize("through", ["/etc", "..", "../outside", "."])
def test_links_of_a_stream_lead_nowhere(tmp_path: Path, target: int, through: str) -> None:
    (tmp_path / "outside").mkdir()
    hostile: Files = [
        (Entry("l", "l", link=through), b""),
        (Entry("l/planted", "f"), b"x"),
    ]
    with pytest.raises(VmmError):
        stream_to_tree(reader(write(hostile)), target, owners=True)
    assert list((tmp_path / "outside").iterdir()) == []
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["l"]


def test_hard_links_only_to_what_is_below(tmp_path: Path, target: int) -> None:
    (tmp_path / "secret").write_text("s")
    for link in ("../secret", "missing", "l/secret"):
        stream = encode_record(("entry", "l", "l", "777", "0", "0", "0", "0", "0", ".."))
        stream += encode_record(("entry", "x", "h", "644", "0", "0", "0", "0", "0", link))
        with pytest.raises(VmmError):
            stream_to_tree(reader(stream + encode_record(("end",))), target, owners=True)
    assert not (tmp_path / "target/x").exists()
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_a_change_cannot_lead_out(target: int) -> None:
    with pytest.raises(VmmError, match="no place"):
        stream_to_tree(
            reader(write([(Entry("x", "f"), b"")])),
            target,
            owners=False,
            change=lambda entry: entry._replace(name="../x"),
        )


def test_without_owners_nothing_dangerous_arrives(tmp_path: Path, target: int) -> None:
    files: Files = [
        (Entry("d", "d", 0o2777, 1, 1), b""),
        (Entry("d/suid", "f", 0o6755, 1, 1, xattrs=(("security.capability", b"x"),)), b"#!"),
    ]
    stream_to_tree(reader(write(files)), target, owners=False)
    made = (tmp_path / "target/d/suid").stat()
    assert (made.st_mode & 0o7777, made.st_uid, made.st_gid) == (0o755, os.getuid(), os.getgid())
    assert os.listxattr(tmp_path / "target/d/suid") == []
    with pytest.raises(VmmError, match="device"):
        stream_to_tree(reader(write([(Entry("b", "b", rdev=1), b"")])), target, owners=False)


def test_what_replaces_what(tmp_path: Path, target: int) -> None:
    top = tmp_path / "target"
    (top / "dir").mkdir()
    (top / "dir/kept").write_text("")
    (tmp_path / "outside").write_text("old")
    (top / "link").symlink_to("../outside")
    files: Files = [
        (Entry(".", "d", 0o700), b""),
        (Entry("dir", "d", 0o750), b""),
        (Entry("link", "f"), b"new"),
        (Entry("made/parents/x", "f"), b""),
    ]
    before = top.stat().st_mode
    stream_to_tree(reader(write(files)), target, owners=False)
    assert (tmp_path / "outside").read_text() == "old"
    assert (top / "link").read_text() == "new"
    assert (top / "dir/kept").exists()
    assert (top / "made/parents/x").exists()
    assert top.stat().st_mode == before
    for wrong in (Entry("dir", "f"), Entry("link", "d"), Entry("dir", "l", link="x")):
        with pytest.raises(VmmError, match="cannot replace"):
            stream_to_tree(reader(write([(wrong, b"")])), target, owners=False)


def test_a_stream_that_breaks_off_leaves_no_half_file(tmp_path: Path, target: int) -> None:
    stream = fs.encode(Entry("x", "f", size=1 << 40)) + bytes(1 << 20)
    with pytest.raises(InvalidDocument, match="ends too early"):
        stream_to_tree(reader(stream), target, owners=False)
    assert not (tmp_path / "target/x").exists()
