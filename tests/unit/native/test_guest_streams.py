"""vmm-init as a guest's first process, over a socket pair: launch, streams, execs, signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.native.guestlab import (
    CREDIT,
    LAUNCH,
    LAXITY,
    WINDOW,
    Guest,
    Peer,
    RequestFailed,
    encode_plan,
)
from tests.unit.native.launching import PATH, Case
from vmm.control import frames as f
from vmm.model.launch import Op, encode_ops, op


@pytest.fixture
def guest(case: Case) -> Iterator[Guest]:
    case.namespaces = ["pid", "mount", "uts", "ipc", "cgroup"]
    with Guest(case.libexec) as guest:
        yield guest


@pytest.fixture
def peer(guest: Guest) -> Peer:
    return guest.peer


def plan(case: Case, *argv: str, tty: bool = False, stdin: bool = False) -> bytes:
    made = case.plan(*argv)
    return encode_plan((op("guest.stdio", int(tty), int(stdin), 0), *made.host), made.child)


def command(*argv: str) -> tuple[Op, ...]:
    return (op("env", PATH), op("exec", *argv))


def children(pid: int) -> list[int]:
    """Of vmm-init: everything that it has not reaped, zombies too."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_runs_and_reports_both_streams_and_the_code(case: Case, peer: Peer) -> None:
    pid = peer.launch(plan(case, "sh", "-c", "echo out; echo err >&2; exit 7"), step=100)
    assert pid > 1
    assert peer.wait() == (7, 0, 0)
    assert (peer.out(), peer.err()) == ("out\n", "err\n")
    exit_at = peer.order.index((0, f.EXIT))
    assert {(0, f.STDOUT), (0, f.STDERR)} == peer.ended
    assert exit_at == len(peer.order) - 1


def test_a_signal_ends_it(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sh", "-c", "trap 'echo got; exit 4' TERM; echo up; sleep 60 & wait"))
    peer.until(lambda: "up" in peer.out())
    peer.ask(f.SIGNAL, signal.SIGTERM, 0)
    assert peer.wait() == (4, 0, 0)
    assert peer.out() == "up\ngot\n"
    with pytest.raises(RequestFailed, match="not running"):
        peer.ask(f.SIGNAL, signal.SIGTERM, 0)


def test_killed_all_at_once(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.ask(f.SIGNAL, signal.SIGKILL, 1)
    assert peer.wait() == (137, 9, 0)


def test_standard_input_to_its_end(case: Case, peer: Peer) -> None:
    data = os.urandom(3 << 19).hex().encode()
    peer.launch(plan(case, "wc", "-c", stdin=True))
    peer.stdin(data)
    peer.eof()
    peer.wait()
    assert peer.out().split() == [str(len(data))]


def test_input_comes_back_whole(case: Case, peer: Peer) -> None:
    data = bytes(range(256)) * 4096 + b"\0VMMSYNC" * 4096
    peer.launch(plan(case, "cat", stdin=True))
    peer.stdin(data)
    peer.eof()
    peer.wait()
    assert bytes(peer.streams[0, f.STDOUT]) == data


def test_input_nobody_takes_costs_no_credit(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.stdin(b"x" * (4 * WINDOW))
    peer.ask(f.SIGNAL, signal.SIGKILL, 0)
    assert peer.wait().code == 137


def test_input_before_the_launch_waits(case: Case, peer: Peer) -> None:
    peer.stdin(b"early\n")
    peer.eof()
    peer.launch(plan(case, "cat", stdin=True))
    assert peer.wait().code == 0
    assert peer.out() == "early\n"


def test_a_terminal(case: Case, peer: Peer) -> None:
    peer.ask(f.RESIZE, 33, 77)
    peer.launch(plan(case, "sh", "-c", "stty size; read x; stty size; tty", tty=True))
    peer.until(lambda: "33 77" in peer.out())
    peer.ask(f.RESIZE, 10, 20)
    peer.stdin(b"go\n")
    assert peer.wait().code == 0
    assert "10 20" in peer.out()
    assert "/dev/console" in peer.out() or "/dev/pts/0" in peer.out()
    assert peer.ended == {(0, f.STDOUT)}


def test_execs_beside_the_workload(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.exec(*command("sh", "-c", "cat; echo err >&2; exit 3"), channel=1, stdin=True)
    peer.exec(*command("sh", "-c", "stty size; exit 4"), channel=2, tty=True)
    peer.exec(*command("sleep", "60"), channel=3, id="slow")
    peer.stdin(b"hello", 1)
    peer.eof(1)
    assert (peer.wait(1), peer.out(1), peer.err(1)) == ((3, 0, 0), "hello", "err\n")
    assert peer.wait(2).code == 4
    peer.ask(f.EXEC_SIGNAL, "slow", signal.SIGTERM, channel=3)
    assert peer.wait(3) == (143, 15, 0)
    assert 0 not in peer.exits


def test_the_workloads_end_comes_after_its_execs(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    for channel in range(1, 6):
        peer.exec(*command("sleep", "60"), channel=channel)
    peer.ask(f.SIGNAL, signal.SIGKILL, 0)
    peer.wait()
    assert set(peer.exits) == set(range(6))
    assert peer.order[-1] == (0, f.EXIT)


def test_a_detached_exec_has_ends_and_an_exit(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.exec(*command("sh", "-c", "echo lost; exit 5"), channel=1, detach=True)
    assert peer.wait(1).code == 5
    assert peer.out(1) == ""
    assert {(1, f.STDOUT), (1, f.STDERR)} == peer.ended


def test_what_an_exec_leaves_running_does_not_hold_it(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    began = time.monotonic()
    peer.exec(*command("sh", "-c", "sleep 60 & echo done"), channel=1)
    assert peer.wait(1).code == 0
    assert time.monotonic() - began < 3
    assert peer.out(1) == "done\n"


@pytest.mark.parametrize(
    ("argv", "code"), [(("nothere",), 127), (("/etc",), 126), (("/etc/hosts",), 126)]
)
def test_a_failed_launch_can_be_tried_again(
    case: Case, peer: Peer, argv: tuple[str, ...], code: int
) -> None:
    with pytest.raises(RequestFailed) as caught:
        peer.launch(plan(case, *argv))
    assert caught.value.code == code
    assert caught.value.step.startswith("exec")
    peer.launch(plan(case, "sh", "-c", "exit 9"))
    assert peer.wait().code == 9
    with pytest.raises(RequestFailed, match="already"):
        peer.launch(plan(case, "true"))


def test_failed_execs_say_why(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    for argv, code in ((("nothere",), 127), (("/etc",), 126)):
        with pytest.raises(RequestFailed) as caught:
            peer.exec(*command(*argv), channel=1)
        assert caught.value.code == code
    peer.exec(*command("true"), channel=1)
    assert peer.wait(1).code == 0


def test_plans_that_cannot_be_carried_out(case: Case, peer: Peer) -> None:
    veth = op("net.veth", "v0", "br0", "eth0", "02:00:00:00:00:01", 1500)
    disk = op("guest.mount", "serial:nosuchdisk", "/vmm", "ext4", "", "")
    for host, said in (
        (veth, "links of its own"),
        (op("guest.frobnicate"), "guest.frobnicate"),
        (op("guest.mount", "tag", "/vmm", "virtiofs", "sticky", ""), "sticky"),
        (disk, "nosuchdisk"),
    ):
        with pytest.raises(RequestFailed, match=said) as caught:
            peer.launch(encode_plan((host,), case.plan("true").child))
        assert caught.value.code == 125
    with pytest.raises(RequestFailed, match="not a launch plan"):
        peer.launch(b"garbage")
    peer.launch(plan(case, "true"))
    assert peer.wait().code == 0


def test_directories_mounts_and_links_of_the_machine(
    case: Case, guest: Guest, tmp_path: Path
) -> None:
    place = tmp_path / "machine"
    host = (
        op("guest.mount", "none", str(place), "tmpfs", "nosuid,nodev", "size=1m"),
        op("guest.mkdir", str(place / "a/b"), "0750", 3, 4),
        op("net.loopback"),
        op("net.address", "lo", "10.9.8.7/32"),
    )
    case.before_pivot = [op("mount.bind", str(place), "/mnt", "")]
    made = case.plan("sh", "-c", "stat -c '%a %u %g' /mnt/a/b; ip addr show lo; ls /mnt")
    peer = guest.peer
    peer.launch(encode_plan((*host, *made.host), made.child))
    peer.wait()
    assert peer.out().startswith("750 3 4\n")
    assert "10.9.8.7/32" in peer.out()
    assert not list(place.iterdir())  # the mount is the guest's alone


def test_files_are_written_before_and_while_it_runs(case: Case, peer: Peer) -> None:
    case.before_pivot = [
        op("symlink", "/run/resolv", "/etc/resolv.conf"),
        op("file.write", "/etc/hosts", "0600", "one\n"),
        op("file.write", "/etc/resolv.conf", "0644", "two\n"),
    ]
    case.after_pivot = [op("root.readonly")]
    look = ("sh", "-c", "stat -c %a /etc/hosts; cat /etc/hosts /run/resolv; touch /x || true")
    peer.launch(plan(case, "sleep", "60"))
    peer.exec(*command(*look), channel=1)
    peer.wait(1)
    assert peer.out(1) == "600\none\ntwo\n"
    peer.ask(f.FILE, "/etc/hosts", b"three\0\n")
    peer.exec(*command("sh", "-c", "cat /etc/hosts; ls /etc"), channel=2)
    peer.wait(2)
    assert peer.out(2).startswith("three\0\n")
    assert (case.layer / "etc/hosts").read_text() == "from the image\n"


def test_a_file_that_is_none_is_not_written(case: Case, peer: Peer) -> None:
    (case.base / "secret").write_text("host")
    os.mkfifo(case.layer / "etc/fifo")
    (case.layer / "etc/link").symlink_to(case.base / "secret")
    peer.launch(plan(case, "sleep", "60"))
    for path in ("/etc/fifo", "/etc", "/dev/null"):
        with pytest.raises(RequestFailed, match="regular"):
            peer.ask(f.FILE, path, b"x")
    peer.ask(f.FILE, "/etc/link", b"inside")
    assert (case.base / "secret").read_text() == "host"


def test_statistics_and_processes(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    fields = dict(part.decode().split("=") for part in peer.ask(f.STATS))
    assert int(fields["cpus"]) >= 1
    peer.request(f.TOP)
    frames = [peer.answer()]
    while frames[-1].type == f.LISTING:
        frames.append(peer.answer())
    text = b"".join(frame.payload for frame in frames[:-1])
    assert frames[-1].type == f.OK
    assert any(line.split(b"\t")[-2:] == [b"sleep", b"sleep 60"] for line in text.splitlines())


def test_nothing_is_left_unreaped(case: Case, guest: Guest) -> None:
    peer = guest.peer
    peer.launch(plan(case, "sleep", "60"))
    for channel in range(1, 12):
        peer.exec(*command("sh", "-c", "(sleep 0.01 &) ; exit 0"), channel=channel)
        peer.wait(channel)
    peer.ask(f.FILE, "/etc/hosts", b"x")
    peer.until(lambda: len(children(guest.process.pid)) == 1)


def test_a_flood_without_credit_is_bounded(case: Case, guest: Guest) -> None:
    peer = guest.peer
    peer.generous = False
    peer.launch(plan(case, "sh", "-c", "while :; do cat /bin/busybox; done"))
    peer.exec(*command("sh", "-c", "while :; do cat /bin/busybox >&2; done"), channel=1)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        peer.pump()
    assert len(peer.streams[0, f.STDOUT]) == WINDOW
    assert len(peer.streams[1, f.STDERR]) == WINDOW
    assert guest.memory() < (8 << 20) * LAXITY
    peer.request(CREDIT, 1000)
    peer.until(lambda: len(peer.streams[0, f.STDOUT]) == WINDOW + 1000)


def test_a_host_that_reads_nothing_is_bounded(case: Case, guest: Guest) -> None:
    peer = guest.peer
    peer.launch(plan(case, "sh", "-c", "while :; do cat /bin/busybox; done"))
    peer.sock.settimeout(0.5)
    request = f.encode(f.TOP) * 1000
    with pytest.raises(TimeoutError):
        for _ in range(5000):
            peer.sock.sendall(request)
    assert guest.memory() < (16 << 20) * LAXITY


def test_exec_requests_that_are_wrong(case: Case, peer: Peer) -> None:
    ops = encode_ops(command("true"))
    with pytest.raises(RequestFailed, match="not running"):
        peer.ask(f.EXEC, "a", 0, 0, 0, ops, channel=1)
    peer.launch(plan(case, "sleep", "60"))
    peer.exec(*command("sleep", "60"), channel=9, id="taken")
    for args, said in (
        (("a", 2, 0, 0, ops), "must be"),
        (("../a", 0, 0, 0, ops), "invalid"),
        (("", 0, 0, 0, ops), "invalid"),
        (("a" * 65, 0, 0, 0, ops), "invalid"),
        (("taken", 0, 0, 0, ops), "in use"),
        (("a", 0, 0, 0, b"\xff" * 40), "broken"),
        (("a", 0, 0), "broken"),
    ):
        with pytest.raises(RequestFailed, match=said):
            peer.ask(f.EXEC, *args, channel=1)
    with pytest.raises(RequestFailed, match="in use"):
        peer.ask(f.EXEC, "b", 0, 0, 0, ops, channel=9)
    with pytest.raises(RequestFailed, match="in use"):
        peer.ask(f.EXEC, "b", 0, 0, 0, ops, channel=0)


def test_unknown_requests_are_answered(peer: Peer) -> None:
    for type in (0, f.STATUS, f.ATTACH, 99, 255, f.OK):
        with pytest.raises(RequestFailed, match="unknown"):
            peer.ask(type)


def test_plan_larger_than_allowed(peer: Peer) -> None:
    for _ in range(257):
        peer.send(LAUNCH, b"x" * 65536)
    with pytest.raises(RequestFailed, match="larger"):
        peer.launch(b"")
