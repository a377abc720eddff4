"""Frames and argument lists: what is encoded decodes to the same, whatever the pieces."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.control import frames as f
from vmm.control.client import Control, refusal
from vmm.control.spawn import launch_error
from vmm.control.terminal import Detector, parse_detach_keys
from vmm.model.errors import LaunchError, UsageError, VmmError

frame = st.builds(f.Frame, st.integers(0, 65535), st.integers(0, 255), st.binary(max_size=300))


@given(st.lists(frame, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_a_stream_cut_anywhere_gives_the_same_frames(sent: list[f.Frame], cuts: list[int]) -> None:
    data = b"".join(f.encode(x.type, x.payload, x.channel) for x in sent)
    decoder, got, at, n = f.Decoder(), [], 0, 0
    while at < len(data):
        size = cuts[n % len(cuts)]
        got += decoder.feed(data[at : at + size])
        at, n = at + size, n + 1
    assert got == sent


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_arguments_round_trip(args: list[bytes]) -> None:
    assert f.decode_args(f.encode_args(*args)) == args


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        args = f.decode_args(data)
    except f.FrameError:
        return
    assert data == b"" or f.encode_args(*args) == data


def test_a_frame_too_long_breaks_the_stream() -> None:
    with pytest.raises(f.FrameError):
        f.Decoder().feed(b"\1\0\1\0\0\0\1\0")
    with pytest.raises(ValueError, match="65537"):
        f.encode(f.STDIN, b"x" * 65537)


def test_refusals_keep_step_and_code() -> None:
    payload = f.encode_args("127", "exec foo", 'exec "foo": executable file not found in $PATH')
    error = refusal(f.Frame(0, f.ERROR, payload))
    assert isinstance(error, LaunchError)
    assert (error.exit_code, error.step) == (127, "exec foo")
    line = launch_error("error 126\tcwd /x\tcwd /x: Permission denied")
    assert (line.exit_code, line.step, line.message) == (126, "cwd /x", "cwd /x: Permission denied")


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("", b""), ("a", b"a"), ("ctrl-@,ctrl-_,~", b"\0\x1f~")],
)
def test_detach_keys(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "ctrl-p,", "é", "shift-a"])
def test_wrong_detach_keys_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="detach-keys"):
        parse_detach_keys(text)


@given(st.lists(st.sampled_from([b"\x10", b"\x11", b"x"]), max_size=12))
def test_detach_keys_are_found_and_the_rest_passed_on(typed: list[bytes]) -> None:
    detector, out, found = Detector(b"\x10\x11"), b"", False
    for key in typed:
        passed, found = detector.feed(key)
        out += passed
        if found:
            break
    text = b"".join(typed)
    head, keys, _ = text.partition(b"\x10\x11")
    assert found == bool(keys)
    assert out == (head if found or not text.endswith(b"\x10") else text[:-1])


def test_importing_the_client_is_cheap() -> None:
    """Nothing heavy on the way of every command."""
    heavy = {"asyncio", "subprocess", "dataclasses", "inspect", "tempfile", "logging", "selectors"}
    program = "import sys, vmm.control.terminal; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert heavy & set(done.stdout.split()) == set()


def test_a_file_too_long_for_a_frame_is_refused_before_it_is_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(VmmError, match="70000 bytes"):
        Control(ours, "ctl.sock").file("/etc/hosts", bytes(70000))
