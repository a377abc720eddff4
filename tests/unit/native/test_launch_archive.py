"""archive.get and archive.put: trees through file streams, whatever the workload does meanwhile."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.unit.native.launching import Case, allow, caps
from vmm.model import filestream as fs
from vmm.model.errors import VmmError
from vmm.model.filestream import CopyFailed, Entry, StreamReader, StreamWriter
from vmm.model.launch import Op, encode_ops, encode_record, op

#: VFS_CAP_REVISION_2, permitted CAP_NET_BIND_SERVICE, effective (linux/capability.h).
FILE_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
DAY = 86_400 * 10**9


def start(
    case: Case, *archive: str, running: tuple[str, ...] = ("sleep", "60"), more: tuple[Op, ...] = ()
) -> subprocess.Popen[bytes]:
    """The copying process inside the workload; its streams are ours."""
    operations = case.base / "operations"
    ops = (op("cwd", "/", "must"), op("user", 0, 0), op("groups"), caps(), *more, op(*archive))
    operations.write_bytes(encode_ops(ops))
    plan = case.base / "plan"
    plan.write_bytes(case.plan(*running).encode())
    return subprocess.Popen(
        [str(case.libexec / "vmm-launch"), "-e", str(operations), str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )


def get(case: Case, path: str, follow: bool = False, **how: object) -> tuple[int, bytes, str]:
    process = start(case, "archive.get", path, str(int(follow)), **how)  # type: ignore[arg-type]
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err.decode()


def put(case: Case, path: str, stream: bytes, **how: object) -> tuple[int, str]:
    process = start(case, "archive.put", path, **how)  # type: ignore[arg-type]
    out, err = process.communicate(stream, timeout=30)
    assert out == b""
    return process.returncode, err.decode()


def read(stream: bytes) -> dict[str, tuple[Entry, bytes]]:
    """Every entry by name, with its content."""
    reader = StreamReader(io.BytesIO(stream).read)
    found = {}
    for entry in reader:
        content = bytearray()
        while data := reader.read():
            content += data
        assert entry.name not in found
        found[entry.name] = (entry, bytes(content))
    return found


def write(*entries: Entry | tuple[Entry, bytes]) -> bytes:
    out = io.BytesIO()
    writer = StreamWriter(out.write)
    for item in entries:
        entry, content = item if isinstance(item[0], Entry) else (item, b"")
        writer.entry(entry._replace(size=len(content)))
        writer.content(content)
    writer.end()
    return out.getvalue()


def make_tree(top: Path) -> None:
    """One of everything."""
    (top / "dir/empty").mkdir(parents=True)
    (top / "dir/file").write_bytes(b"content\n")
    os.chown(top / "dir/file", 12, 34)
    (top / "dir/file").chmod(0o6751)
    os.setxattr(top / "dir/file", "user.colour", b"\0blue\xff")
    os.setxattr(top / "dir/file", "security.capability", FILE_CAPABILITY)
    os.link(top / "dir/file", top / "dir/same")
    (top / "link").symlink_to("../../../etc/shadow")
    os.chown(top / "link", 5, 6, follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / os.fsdecode(b"odd\n\xff name")).write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.open(top, os.O_RDONLY)
        s.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with open(top / "sparse", "wb") as file:
        file.truncate(40 << 20)
        os.pwrite(file.fileno(), b"middle", 20 << 20)
    for name in ("dir/empty", "dir/file", "dir", "link", "sparse"):
        os.utime(top / name, ns=(DAY, DAY + 123_456_789), follow_symlinks=False)


def test_a_tree_comes_out(case: Case) -> None:
    make_tree(case.layer / "tree")
    code, out, err = get(case, "/tree")
    assert (code, err) == (0, "")
    found = read(out)
    names = {".", "dir", "dir/empty", "dir/file", "dir/same", "link", "fifo", "null", "sparse"}
    assert set(found) == names | {os.fsdecode(b"odd\n\xff name")}, "all but the socket"
    linked = {name for name in ("dir/file", "dir/same") if found[name][0].type == fs.HARD_LINK}
    assert len(linked) == 1
    second, (first,) = found[linked.copy().pop()][0], {"dir/file", "dir/same"} - linked
    file, content = found[first]
    assert (second.link, content) == (first, b"content\n")
    assert (file.type, file.mode, file.uid, file.gid) == ("f", 0o6751, 12, 34)
    assert dict(file.xattrs) == {
        "user.colour": b"\0blue\xff",
        "security.capability": FILE_CAPABILITY,
    }
    assert file.mtime == DAY + 123_456_789
    link = found["link"][0]
    assert (link.type, link.link, link.uid, link.gid) == ("l", "../../../etc/shadow", 5, 6)
    assert (found["fifo"][0].type, found["fifo"][0].mode) == ("p", 0o640)
    assert (found["null"][0].type, found["null"][0].rdev) == ("c", os.makedev(1, 3))
    assert found["sparse"][1].strip(b"\0") == b"middle"
    assert found["sparse"][0].size == 40 << 20
    order = list(found)
    assert order.index("dir") < order.index("dir/empty"), "a directory before what is in it"


def test_a_tree_goes_in_as_it_came_out(case: Case) -> None:
    make_tree(case.layer / "tree")
    out = get(case, "/tree")[1]
    case.before_pivot.append(op("mkdir", "/target", "0755", 0, 0))
    assert put(case, "/target", out) == (0, "")
    again = get(case, "/target")
    assert again[0] == 0
    before, after = read(out), read(again[1])
    assert set(before) == set(after)

    def shape(entry: Entry) -> Entry:
        return entry._replace(type="f" if entry.type == "h" else entry.type, link="", size=0)

    for name in set(before) - {".", "dir/same", "dir/file"}:
        assert before[name] == after[name]
    upper = case.base / "upper/target"
    assert (upper / "dir/same").stat().st_ino == (upper / "dir/file").stat().st_ino
    assert os.getxattr(upper / "dir/file", "security.capability") == FILE_CAPABILITY
    assert (upper / "dir/file").stat().st_mode & 0o7777 == 0o6751
    assert (upper / "dir").stat().st_mtime_ns == DAY + 123_456_789
    assert (upper / "sparse").stat().st_blocks * 512 < 1 << 20, "holes stay holes"
    assert (upper / "sparse").stat().st_size == 40 << 20


def test_single_files_and_links(case: Case) -> None:
    (case.layer / "file").write_bytes(b"x" * 100_000)
    (case.layer / "a").mkdir()
    (case.layer / "a/link").symlink_to("/file")
    (case.layer / "b").symlink_to("a")
    assert read(get(case, "/file")[1])["."][1] == b"x" * 100_000
    link = read(get(case, "/a/link")[1])["."][0]
    assert (link.type, link.link) == ("l", "/file")
    assert read(get(case, "/b/link", follow=True)[1])["."][1] == b"x" * 100_000
    assert read(get(case, "/b")[1])["."][0].type == "l"
    assert set(read(get(case, "/b/")[1])) == {".", "link"}


@pytest.mark.parametrize("path", ["/nothing", "/etc/hosts/x", "/loop"])
def test_what_cannot_be_read_is_said(case: Case, path: str) -> None:
    (case.layer / "loop").symlink_to("loop")
    code, out, err = get(case, path, follow=True)
    assert code == 1
    assert path in err and err.count("\n") == 1
    with pytest.raises(CopyFailed, match=path) as caught:
        read(out)
    assert caught.value.errno > 0


def test_a_link_does_not_lead_out_of_the_root(case: Case, tmp_path: Path) -> None:
    (case.layer / "out").symlink_to("../" * 20 + str(tmp_path))
    (case.layer / "proc-root").symlink_to("/proc/1/root")
    for path in ("/out", "/proc-root"):
        assert get(case, path, follow=True)[0] == 1
        assert put(case, path, write(Entry("x", "f")))[0] == 1
    assert not (tmp_path / "x").exists()


def test_a_link_of_the_stream_leads_nowhere(case: Case) -> None:
    (case.layer / "t").mkdir()
    for target in ("/etc", "..", "../etc", "../t"):
        code, err = put(
            case, "/t", write(Entry("l", "l", link=target), (Entry("l/hosts", "f"), b"hostile"))
        )
        assert code == 1
        assert '"l/hosts"' in err
    assert not (case.base / "upper/etc").exists()


def raw(*parts: str | bytes) -> bytes:
    return encode_record(parts) + encode_record(("end",))


def entry_parts(name: str | bytes, kind: str = "f", link: str = "") -> tuple[str | bytes, ...]:
    return ("entry", name, kind, "644", "0", "0", "0", "0", "0", link)


@pytest.mark.parametrize(
    "stream",
    [
        raw(*entry_parts("../x")),
        raw(*entry_parts("/x")),
        raw(*entry_parts("a/../../x")),
        raw(*entry_parts("a//x")),
        raw(*entry_parts("")),
        raw(*entry_parts("a/.")),
        raw(*entry_parts("a/")),
        raw(*entry_parts(b"a\0b")),
        raw(*entry_parts("n" * 256)),
        raw(*entry_parts("n/" * 2048 + "n")),
        raw(*entry_parts(".")),
        raw(*entry_parts("x", "h", "../etc/hosts")),
        raw(*entry_parts("x", "h", "/etc/hosts")),
        raw(*entry_parts("x", "h", ".")),
        raw(*entry_parts("x", "h", "missing")),
        raw(*entry_parts("x", "l", "")),
        raw(*entry_parts("x", "l", "l" * 5000)),
        raw(*entry_parts("x", "z")),
        raw(*entry_parts("x", "\0")),
        raw(*entry_parts("x", "ff")),
        raw(*entry_parts("x")[:9]),
        raw(*entry_parts("x"), "user.alone"),
        raw(*entry_parts("x"), "trusted.overlay.opaque", "y"),
        raw(*entry_parts("x")).replace(b"644", b"9zz"),
        raw("entries", *entry_parts("x")[1:]),
        encode_record(("error", "5", "the disk\nis broken")),
        encode_record(entry_parts("x")),
        b"",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\xff\xff\xff\xff",
        b"\x00\x10\0\0" + b"\0\0\x01\0" * 9,
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_hostile_streams_are_refused(case: Case, stream: bytes) -> None:
    (case.layer / "t").mkdir()
    code, err = put(case, "/t", stream)
    assert code == 1
    assert err.count("\n") == 1 and err.isprintable() is False and err.strip().isprintable()
    above = {path.name for path in (case.base / "upper").iterdir()}
    assert not above & {"x", "etc"}


def test_content_that_is_cut_short_leaves_no_half_file(case: Case) -> None:
    (case.layer / "t").mkdir()
    stream = fs.encode(Entry("x", "f", size=1 << 40)) + b"y" * 300_000
    code, err = put(case, "/t", stream)
    assert (code, err) == (1, '"x" ends too early\n')
    assert not (case.base / "upper/t/x").exists()


def test_files_replace_files_and_directories_stay(case: Case) -> None:
    top = case.layer / "t"
    (top / "dir").mkdir(parents=True)
    (top / "dir/kept").write_text("kept")
    (top / "link").symlink_to("/etc/hosts")
    (top / "file").write_text("old")
    stream = write(
        Entry(".", "d", 0o700),
        Entry("dir", "d", 0o750, 7, 8),
        (Entry("dir/new/deep", "f"), b"made with its parents"),
        (Entry("link", "f"), b"no link now"),
        Entry("file", "l", link="dir/kept"),
    )
    assert put(case, "/t", stream) == (0, "")
    upper = case.base / "upper/t"
    assert (upper / "link").read_text() == "no link now"
    assert not (upper / "link").is_symlink()
    assert (upper / "dir/new/deep").read_text() == "made with its parents"
    assert os.readlink(upper / "file") == "dir/kept"
    assert (upper / "dir").stat().st_mode & 0o7777 == 0o750
    assert upper.stat().st_mode & 0o7777 == 0o755, "what is copied into stays as it was"
    assert not (case.base / "upper/etc").exists()


def test_directories_and_files_never_replace_each_other(case: Case) -> None:
    (case.layer / "t/dir").mkdir(parents=True)
    (case.layer / "t/file").write_text("")
    for entry, said in (
        (Entry("dir", "f"), 'cannot replace the directory "dir" with a file: Is a directory\n'),
        (
            Entry("dir", "l", link="x"),
            'cannot replace the directory "dir" with a file: Is a directory\n',
        ),
        (Entry("file", "d"), 'cannot replace the file "file" with a directory: Not a directory\n'),
        (Entry("file/x", "f"), '"file/x": its directory: Not a directory\n'),
    ):
        assert put(case, "/t", write(entry)) == (1, said)
    assert put(case, "/t/file", write())[0] == 1


def test_a_full_disk_is_reported(case: Case) -> None:
    case.before_pivot.append(op("mount.fs", "tmpfs", "tmpfs", "/small", "nosuid", "size=64k"))
    code, err = put(case, "/small", write((Entry("big", "f"), b"x" * 200_000)))
    assert (code, err) == (1, 'cannot make "big": No space left on device\n')


def test_made_up_file_systems_are_left_out(case: Case) -> None:
    found = read(get(case, "/")[1])
    assert {"proc", "sys", "dev", "dev/null", "bin/busybox"} <= set(found)
    assert not any(name.startswith(("proc/", "sys/", "dev/pts/")) for name in found)


def test_deep_trees(case: Case) -> None:
    here = os.open(case.layer, os.O_RDONLY)
    for name in ["deep", *["d"] * 900]:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    code, out, err = get(case, "/deep")
    assert (code, err) == (0, "")
    assert len(read(out)) == 901
    case.before_pivot.append(op("mkdir", "/copy", "0755", 0, 0))
    assert put(case, "/copy", out) == (0, "")
    subprocess.run(["rm", "-rf", str(case.layer / "deep"), str(case.base / "upper")], check=True)


def test_too_deep_is_an_error(case: Case) -> None:
    here = os.open(case.layer, os.O_RDONLY)
    for name in ["deep", *["d"] * 1100]:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    code, out, _ = get(case, "/deep")
    assert code == 1
    with pytest.raises(CopyFailed, match="deeper than 1000"):
        read(out)
    subprocess.run(["rm", "-rf", str(case.layer / "deep")], check=True)


def test_nobody_inside_can_look_into_it(case: Case) -> None:
    """Its command line, which named the plan, is gone; memory and program are closed to root."""
    (case.layer / "t").mkdir()
    case.process = [caps(), allow()]
    script = (
        "while ! grep -qs vmm-archive /proc/[0-9]*/comm; do :; done; "
        "for p in /proc/[0-9]*; do if grep -q vmm-archive $p/comm; then "
        "cat $p/cmdline; echo; readlink $p/exe; cat $p/environ; "
        "readlink $p/fd/3; cat $p/maps; fi; done; "
        "echo done >&2; sleep 60"
    )
    process = start(case, "archive.put", "/t", running=("sh", "-c", script))
    assert process.stdin and process.stderr and process.stdout
    said = b""
    while b"done" not in said:
        said += os.read(process.stderr.fileno(), 4096)
    process.stdin.write(write(Entry("x", "f")))
    process.stdin.close()
    assert process.wait(20) == 0
    assert process.stdout.read().replace(b"\0", b"").strip() == b"vmm-archive"
    assert said.count(b"Permission denied") == 2, "readlink(1) fails silently"
    process.stdout.close()
    process.stderr.close()


def test_a_reader_that_leaves_ends_it(case: Case) -> None:
    with open(case.layer / "big", "wb") as file:
        file.truncate(1 << 40)
    process = start(case, "archive.get", "/big", "0")
    assert process.stdout and process.stderr and process.stdin
    assert len(process.stdout.read(1000)) == 1000
    process.stdout.close()
    assert process.wait(20) in (1, 141)
    process.stderr.close()
    process.stdin.close()


def test_a_tree_that_changes_all_the_time(case: Case) -> None:
    """Names become links that lead out of the tree, and back: nothing there is read or written."""
    (case.layer / "secret").mkdir()
    (case.layer / "secret/file").write_text("secret")
    for name in ("mv", "ln", "rm"):
        (case.layer / "bin" / name).symlink_to("busybox")
    case.before_pivot.append(op("mount.fs", "tmpfs", "tmpfs", "/t", "nosuid", ""))
    script = (
        "cd /t; mkdir swap; echo inside >swap/file; "
        "while :; do mv -T swap aside; ln -s /secret swap; rm swap; mv -T aside swap; done"
    )
    stream = write(*[(Entry("swap/file", "f"), b"written")] * 200)
    for _ in range(3):
        _, out, err = get(case, "/t", running=("sh", "-c", script))
        assert b"secret" not in out.replace(b"/secret", b""), err
        put(case, "/t", stream, running=("sh", "-c", script))
    assert not (case.base / "upper/secret").exists()


def test_two_things_to_do_are_refused(case: Case) -> None:
    result = case.exec(op("archive.put", "/"), op("exec", "true"))
    assert (result.code, "two things" in result.err) == (125, True)
    assert case.exec(op("archive.put", "/"), op("archive.put", "/")).code == 125
    assert case.exec(op("archive.put", "/"), options=("-t",)).code == 125


def test_as_the_only_process_of_a_launch(case: Case) -> None:
    plan = case.plan("true")
    child = [*plan.child[:-1], op("archive.put", "/etc")]
    (case.base / "plan").write_bytes(plan._replace(child=tuple(child)).encode())
    done = subprocess.run(
        [str(case.libexec / "vmm-launch"), str(case.base / "plan")],
        input=write((Entry("made", "f"), b"alone")),
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (case.base / "upper/etc/made").read_bytes() == b"alone"


def test_killed_in_the_middle(case: Case) -> None:
    """Whoever holds the other end sees the end; nothing waits for ever."""
    (case.layer / "t").mkdir()
    process = start(case, "archive.put", "/t")
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(fs.encode(Entry("x", "f", size=1 << 30)) + b"y" * 100_000)
    process.stdin.flush()
    time.sleep(0.2)
    killer = threading.Timer(0, process.kill)
    killer.start()
    assert process.wait(20) == -9
    killer.join()
    with pytest.raises(BrokenPipeError):
        for _ in range(100):
            process.stdin.write(b"y" * 100_000)
            process.stdin.flush()
            time.sleep(0.01)
    for stream in (process.stdout, process.stderr, process.stdin):
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def test_streams_for_people_are_checked(case: Case) -> None:
    with pytest.raises(VmmError):
        fs.encode(Entry("../x", "f"))
