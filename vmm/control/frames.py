"""Frames of the control protocol (native/PROTOCOL.md, "Frame")."""

from __future__ import annotations

from struct import Struct
from struct import error as _StructError
from typing import NamedTuple

VERSION = "1.0"
MAX_PAYLOAD = 65536

HELLO = 1
OK = 2
ERROR = 3
STATUS = 10
START = 11
SIGNAL = 12
STOP = 13
WAIT = 14
WAIT_NEXT = 15
ATTACH = 16
RESIZE = 17
EXEC = 18
EXEC_SIGNAL = 19
DETACH = 20
PAUSE = 21
UNPAUSE = 22
STATS = 23
TOP = 24
UPDATE = 25
FILE = 26
STDIN = 30
STDOUT = 31
STDERR = 32
EXIT = 33
EXEC_ATTACH = 34
LISTING = 35

#: u32 length, u16 channel, u8 type, u8 flags; little-endian.
HEADER = Struct("<IHBB")
_U32 = Struct("<I")


class FrameError(ValueError):
    """The peer broke the framing."""


class Frame(NamedTuple):
    channel: int
    type: int
    payload: bytes


def encode(type: int, payload: bytes = b"", channel: int = 0) -> bytes:
    """One frame; ValueError when the payload is over 65,536 bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), channel, type, 0) + payload


def encode_args(*args: str | bytes | int) -> bytes:
    """A bare argument list (native/LAUNCH.md, "Encoding"); integers in decimal."""
    out = [_U32.pack(len(args))]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode("utf-8", "surrogateescape")
        out += (_U32.pack(len(data)), data, b"\0")
    return b"".join(out)


def decode_args(payload: bytes) -> list[bytes]:
    """The arguments of a bare list; FrameError when it is not one."""
    if not payload:
        return []
    try:
        (count,) = _U32.unpack_from(payload)
        at, args = 4, []
        for _ in range(count):
            (length,) = _U32.unpack_from(payload, at)
            end = at + 4 + length
            if payload[end : end + 1] != b"\0":
                raise FrameError("argument without its end")
            args.append(payload[at + 4 : end])
            at = end + 1
    except _StructError as error:
        raise FrameError(f"arguments cut short: {error}") from None
    if at != len(payload):
        raise FrameError("bytes after the last argument")
    return args


def numbers_of(fields: list[bytes]) -> dict[str, int]:
    """``name=value`` fields of STATS (native/PROTOCOL.md, "Statistics"); those that are none, which
    only a guest that lies sends, are left out."""
    numbers = {}
    for field in fields:
        name, _, value = field.partition(b"=")
        if value.isdigit() and len(value) <= 20:
            numbers[name.decode("ascii", "replace")] = int(value)
    return numbers


class Decoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completed."""
        self._data += data
        frames, at = [], 0
        while len(self._data) - at >= HEADER.size:
            length, channel, type, flags = HEADER.unpack_from(self._data, at)
            if length > MAX_PAYLOAD or flags:
                raise FrameError(f"frame of {length} bytes with flags {flags}")
            end = at + HEADER.size + length
            if len(self._data) < end:
                break
            frames.append(Frame(channel, type, bytes(self._data[at + HEADER.size : end])))
            at = end
        del self._data[:at]
        return frames
