"""Streams: attach, standard input, terminals, the log, slow readers."""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.unit.shim.shimlab import Lab, collect, eventually, read_until
from vmm.control import frames as f
from vmm.model.errors import ShimLost, VmmError


def test_nothing_is_lost_for_clients_attached_before_the_start(lab: Lab) -> None:
    lab.spawn("sh", "-c", "seq 100000", log=("none",))
    clients = [lab.control() for _ in range(3)]
    for client in clients:
        client.attach()
        client.expect_exit()
    results: list[bytes] = []
    readers = [threading.Thread(target=lambda c=c: results.append(collect(c)[0])) for c in clients]
    for reader in readers:
        reader.start()
    lab.control().start()
    for reader in readers:
        reader.join(20)
    wanted = subprocess.run(["seq", "100000"], capture_output=True, check=True).stdout
    assert [r == wanted for r in results] == [True] * 3


def test_a_slow_reader_gets_everything(lab: Lab) -> None:
    """More than buffers hold, read after a pause: the workload waits a little, nothing is lost."""
    control = lab.start("head", "-c", "8000000", "/dev/zero", log=("none",))
    time.sleep(1)
    out, _, code = collect(control)
    assert (len(out), code) == (8000000, 0)


def test_a_client_that_never_reads_is_cut_off_and_the_workload_goes_on(lab: Lab) -> None:
    script = "head -c 4000000 /dev/zero; touch /tmp/done; exec sleep 60"
    control = lab.start("sh", "-c", script, log=("none",))
    began = time.monotonic()

    def written() -> bool:
        return Path(f"/proc/{lab.state()['pid']}/root/tmp/done").exists()

    eventually(written, 20)
    assert 8 < time.monotonic() - began < 15
    with pytest.raises(ShimLost):
        while True:
            assert control.next_frame(5) is not None
    assert lab.status()["status"] == "running"


def test_stdin_and_its_end(lab: Lab) -> None:
    control = lab.start("cat", stdin=True, once=True)
    data = bytes(range(256)) * 4000

    def write() -> None:
        control.write_stdin(data)
        control.write_stdin(b"")

    writer = threading.Thread(target=write)
    writer.start()
    out, _, code = collect(control)
    writer.join()
    assert (hashlib.sha256(out).digest(), code) == (hashlib.sha256(data).digest(), 0)


def test_stdin_sent_before_the_start_arrives(lab: Lab) -> None:
    lab.spawn("cat", stdin=True, once=True)
    control = lab.control()
    control.attach(stdin=True)
    control.expect_exit()
    control.write_stdin(b"early\n")
    control.write_stdin(b"")
    control.start()
    assert collect(control) == (b"early\n", b"", 0)


def test_a_sender_is_held_while_the_workload_does_not_read(lab: Lab) -> None:
    control = lab.start("sleep", "60", stdin=True, once=True)
    control.enqueue(f.STDIN, b"x" * 65536)
    for _ in range(200):
        control.enqueue(f.STDIN, b"x" * 65536)
    for _ in range(20):
        control.flush()
        time.sleep(0.01)
    assert control.unsent > 8 << 20, "the shim took it all into memory"
    assert lab.status()["status"] == "running"


def test_stdin_once_ends_when_its_client_leaves(lab: Lab) -> None:
    control = lab.start("sh", "-c", "cat; echo end", stdin=True, once=True)
    other = lab.control()
    other.attach()
    other.expect_exit()
    control.write_stdin(b"data\n")
    control.close()
    assert collect(other)[0].endswith(b"end\n")


def test_stdin_stays_open_without_once(lab: Lab) -> None:
    control = lab.start("cat", stdin=True)
    control.write_stdin(b"")
    control.close()
    other = lab.control()
    other.attach(stdin=True)
    other.write_stdin(b"still\n")
    assert read_until(other, b"still\n") == b"still\n"


def test_detach_ends_the_streams_only(lab: Lab) -> None:
    control = lab.start("sh", "-c", "while :; do echo tick; sleep 0.02; done")
    read_until(control, b"tick")
    control.detach()
    while control.next_frame(0.1) is not None:
        pass
    assert lab.status()["status"] == "running"
    control.attach()
    read_until(control, b"tick")


def test_a_terminal_is_one_stream_with_a_size(lab: Lab) -> None:
    lab.spawn(
        "sh", "-c", "stty size; echo err >&2; read x; stty size; tty=$x", tty=True, stdin=True
    )
    control = lab.control()
    control.attach(stdin=True)
    control.expect_exit()
    control.resize(31, 117)
    control.start()
    assert read_until(control, b"err\r\n") == b"31 117\r\nerr\r\n"
    control.resize(50, 20)
    control.write_stdin(b"go\n")
    out, err, code = collect(control)
    assert (out, err, code) == (b"go\r\n50 20\r\n", b"", 0)
    assert {line["stream"] for line in lab.log()} == {"stdout"}


def test_the_log_is_dockers(lab: Lab) -> None:
    script = r"""printf 'a<b>&"\\\t\001\377\303\251\n'; printf 'part' >&2"""
    collect(lab.start("sh", "-c", script))
    text = (lab.path / "log").read_text()
    assert (
        r'{"log":"a\u003cb\u003e\u0026\"\\\u0009\u0001\ufffdé\n","stream":"stdout","time":"' in text
    )
    lines = {line["stream"]: line for line in lab.log()}
    assert lines["stderr"]["log"] == "part"
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")
    assert all(stamp.fullmatch(line["time"]) for line in lines.values())


def test_long_lines_are_split_between_characters(lab: Lab) -> None:
    """16,384 is no multiple of 3: a cut there would break the euro sign's three bytes."""
    script = r"i=0; while [ $i -lt 8000 ]; do printf '\342\202\254'; i=$((i+1)); done; echo"
    collect(lab.start("sh", "-c", script))
    parts = [line["log"] for line in lab.log()]
    assert "".join(parts) == "€" * 8000 + "\n"
    assert [len(p.encode()) for p in parts] == [16383, 24001 - 16383]


def test_rotation_keeps_size_and_count(lab: Lab) -> None:
    log = ("json-file", str(lab.path / "log"), 20000, 3)
    collect(lab.start("seq", "100000", "101000", log=log))
    files = sorted(p.name for p in lab.path.glob("log*"))
    assert files == ["log", "log.1", "log.2"]
    assert all((lab.path / name).stat().st_size <= 20000 for name in files)
    numbers = [int(line["log"]) for name in ("log.2", "log.1", "log") for line in lab.log(name)]
    assert numbers == list(range(numbers[0], 101001))


def test_a_full_disk_costs_log_lines_not_output(lab: Lab, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    try:
        control = lab.start("seq", "3000", log=("json-file", str(disk / "log"), -1, 1))
        assert collect(control)[0].endswith(b"2999\n3000\n")
        assert control.wait_closed()
        logged = [line["log"] for line in lab.log("disk/log")]
        assert 0 < len(logged) < 3000
    finally:
        subprocess.run(["umount", disk], check=True)


def test_lost_lines_are_noted_once_there_is_room(lab: Lab, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], check=True)
    try:
        script = "seq 3000; read x; echo after"
        log = ("json-file", str(disk / "log"), -1, 1)
        control = lab.start("sh", "-c", script, log=log, stdin=True, once=True)
        read_until(control, b"3000\n")
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        control.write_stdin(b"go\n")
        collect(control)
        last = [line["log"] for line in lab.log("disk/log")][-2:]
        assert re.fullmatch(r"vmm: \d+ log lines lost: No space left on device\n", last[0])
        assert last[1] == "after\n"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_attaching_a_channel_twice_is_refused(lab: Lab) -> None:
    control = lab.start("sleep", "60")
    with pytest.raises(VmmError, match="in use"):
        control.attach()
