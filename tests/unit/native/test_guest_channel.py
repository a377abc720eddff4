"""The channel itself: synchronisation, what breaks it, the end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.unit.native.guestlab import (
    CREDIT,
    LAXITY,
    MARKER,
    SHUTDOWN,
    WINDOW,
    Guest,
    Peer,
    RequestFailed,
)
from tests.unit.native.launching import Case
from tests.unit.native.test_guest_streams import children, command, plan
from vmm.control import frames as f


@pytest.fixture
def guest(case: Case) -> Iterator[Guest]:
    case.namespaces = ["pid", "mount", "uts", "ipc", "cgroup"]
    with Guest(case.libexec) as guest:
        yield guest


@pytest.fixture
def peer(guest: Guest) -> Peer:
    return guest.peer


def test_says_what_it_is(peer: Peer) -> None:
    ended = {"pid": "0", "code": "0", "signal": "0", "oom": "0"}
    assert peer.hello == {"state": "idle", **ended, "time": "1"}


def test_nothing_before_the_marker_counts(case: Case) -> None:
    with Guest(case.libexec) as guest:
        peer = guest.peer
        peer.raw(b"garbage" * 1000 + MARKER[:5])
        peer.sync()
        assert peer.hello["state"] == "idle"


def test_hello_comes_first(peer: Peer) -> None:
    peer.raw(MARKER + os.urandom(16))
    peer.send(SHUTDOWN)
    time.sleep(0.2)
    peer.sync()
    assert peer.hello["state"] == "idle"


def test_a_later_version_is_refused(peer: Peer) -> None:
    with pytest.raises(RequestFailed, match="version"):
        peer.ask(f.HELLO, "2.0")


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 5000])
def test_a_new_host_in_the_middle_of_a_frame(case: Case, peer: Peer, cut: int) -> None:
    peer.launch(plan(case, "cat", stdin=True))
    peer.raw(f.encode(f.STDIN, b"x" * 60000)[:cut])
    peer.sync()
    assert peer.hello["state"] == "running"
    assert int(peer.hello["pid"]) > 1
    peer.stdin(b"after\n")
    peer.until(lambda: peer.out() == "after\n")
    peer.eof()
    assert peer.wait().code == 0


def test_a_marker_between_frames_begins_anew_at_once(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    began = time.monotonic()
    for _ in range(5):
        peer.sync()
    assert time.monotonic() - began < 1
    assert peer.hello["state"] == "running"


@pytest.mark.parametrize("lines", [20000, 80000])
def test_what_the_former_host_did_not_get_goes_on(case: Case, lines: int) -> None:
    """It read nothing: what lies in the socket is lost with it; what is queued (of 20,000 lines
    that is the end, too) or was not read yet is not."""
    with Guest(case.libexec, generous=False, buffer=4096) as guest:
        peer = guest.peer
        script = f"i=0; while [ $i -lt {lines} ]; do echo $i; i=$((i+1)); done; exit 3"
        peer.launch(plan(case, "sh", "-c", script))
        time.sleep(0.7)
        peer.generous = True
        peer.sync()
        assert peer.hello["state"] == "running"
        assert peer.wait(seconds=20).code == 3
        numbers = [int(line) for line in peer.out().split("\n")[1:-1]]
        assert numbers == list(range(numbers[0], lines))
        assert len(numbers) > lines / 2
        peer.sync()
        assert peer.hello["state"] == "exited"


def test_ends_told_to_the_former_host_are_told_again(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sh", "-c", "exec >/dev/null 2>/dev/null; sleep 60"))
    peer.until(lambda: len(peer.ended) == 2)
    peer.sync()
    peer.until(lambda: len(peer.ended) == 2)
    peer.ask(f.SIGNAL, signal.SIGKILL, 0)
    assert peer.wait().code == 137


def test_after_its_end_the_state_tells(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sh", "-c", "kill -9 $$; exit 6"))
    code, number, _ = peer.wait()
    peer.sync()
    assert peer.hello == {
        "state": "exited",
        "pid": "0",
        "code": str(code),
        "signal": str(number),
        "oom": "0",
        "time": "1",
    }
    peer.pump(0.2)
    assert not peer.exits


def test_execs_of_the_former_host_are_ended(case: Case, guest: Guest, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.exec(*command("sleep", "60"), channel=1)
    peer.exec(*command("sleep", "60"), channel=2, detach=True)
    assert len(children(guest.process.pid)) == 3
    peer.sync()
    peer.until(lambda: len(children(guest.process.pid)) == 1)
    peer.exec(*command("echo", "new"), channel=1)
    assert peer.wait(1).code == 0
    assert peer.out(1) == "new\n"


def test_broken_framing_waits_for_a_new_beginning(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60"))
    peer.raw(b"\xff" * 4000)
    peer.send(f.SIGNAL, f.encode_args(9, 0))
    peer.sync()
    assert peer.hello["state"] == "running"


def test_input_beyond_its_credit_breaks_it(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sleep", "60", stdin=True))
    for _ in range(WINDOW // 65536 + 2):
        peer.send(f.STDIN, b"x" * 65536)
    peer.sync()
    assert peer.hello["state"] == "running"


def test_credit_that_was_never_used_is_none(case: Case, peer: Peer) -> None:
    peer.generous = False
    peer.request(CREDIT, 10 * WINDOW)
    peer.launch(plan(case, "sh", "-c", "cat /bin/busybox"))
    while peer.pump(0.5):
        pass
    assert len(peer.streams[0, f.STDOUT]) == WINDOW


def test_input_of_a_former_host_gives_no_credit(case: Case, peer: Peer) -> None:
    peer.launch(plan(case, "sh", "-c", "read x; sleep 1; wc -c", stdin=True))
    peer.stdin(b"x" * (WINDOW // 2))
    peer.sync()
    peer.stdin(b"\n" + b"y" * (WINDOW // 2))
    peer.eof()
    assert peer.wait().code == 0
    assert peer.credit[0] <= WINDOW
    assert peer.out().split() == [str(WINDOW // 2)]


def test_any_bytes_leave_it_able_to_begin_anew(case: Case, guest: Guest) -> None:
    peer, dice = guest.peer, random.Random(1)
    peer.launch(plan(case, "sleep", "60"))
    types = [f.HELLO, f.EXEC, f.RESIZE, f.STDIN, f.STATS, f.TOP, f.FILE, 40, 41, 77]
    for _ in range(60):
        for _ in range(dice.randrange(1, 6)):
            payload = dice.randbytes(dice.randrange(0, 200))
            if dice.random() < 0.5:
                payload = f.encode_args(*(dice.randbytes(3) for _ in range(dice.randrange(6))))
            peer.send(dice.choice(types), payload, dice.randrange(3))
        if dice.random() < 0.5:
            peer.raw(dice.randbytes(dice.randrange(100)))
        peer.sync()
        assert peer.hello["state"] == "running"
    assert guest.process.poll() is None
    assert guest.memory() < (16 << 20) * LAXITY


def test_shutdown_ends_all(case: Case, guest: Guest) -> None:
    pid = guest.peer.launch(plan(case, "sh", "-c", "trap '' TERM; sleep 60"))
    guest.peer.send(SHUTDOWN)
    assert guest.process.wait(10) == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_the_channels_end_ends_all(case: Case, guest: Guest) -> None:
    pid = guest.peer.launch(plan(case, "sleep", "60"))
    guest.peer.sock.close()
    assert guest.process.wait(10) == 0
    assert not os.path.exists(f"/proc/{pid}")


def test_without_shutdown_it_ends_by_itself(case: Case, guest: Guest) -> None:
    guest.peer.launch(plan(case, "true"))
    guest.peer.wait()
    began = time.monotonic()
    assert guest.process.wait(20) == 0
    assert 8 < time.monotonic() - began < 15
