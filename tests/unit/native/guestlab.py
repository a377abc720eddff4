"""The host's end of a guest's channel (native/PROTOCOL.md), to talk to vmm-init with."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vmm.control import frames as f
from vmm.model.launch import MAGIC, Op, encode_ops, encode_record

LAUNCH, CREDIT, SHUTDOWN = 40, 41, 42
MARKER = b"\0VMMSYNC"
WINDOW = 256 << 10
#: How much more memory it may take when it is built with sanitizers.
LAXITY = 10 if "VMM_TEST_SANITIZED" in os.environ else 1


class Exit(NamedTuple):
    code: int
    signal: int
    oom: int


class RequestFailed(Exception):
    def __init__(self, payload: bytes) -> None:
        code, step, message = (part.decode(errors="replace") for part in f.decode_args(payload))
        self.code, self.step, self.message = int(code), step, message
        super().__init__(f"{step}: {message} ({code})")


def encode_plan(host: Iterable[Op], child: Iterable[Op]) -> bytes:
    """What LAUNCH carries."""
    parts = (
        encode_record(("section", "host")),
        encode_ops(host),
        encode_record(("section", "child")),
        encode_ops(child),
    )
    return MAGIC + b"".join(parts)


class Peer:
    """A shim's side of the channel: keeps what streams brought, gives credit if ``generous``."""

    def __init__(self, sock: socket.socket, generous: bool = True) -> None:
        self.sock, self.generous = sock, generous
        self.decoder = f.Decoder()
        self.answers: list[f.Frame] = []
        self.streams: dict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self.ended: set[tuple[int, int]] = set()
        self.exits: dict[int, Exit] = {}
        self.credit: dict[int, int] = defaultdict(lambda: WINDOW)
        self.hello: dict[str, str] = {}
        self.order: list[tuple[int, int]] = []
        sock.settimeout(0.2)

    # ---- bytes ----

    def raw(self, data: bytes) -> None:
        self.sock.settimeout(10)
        self.sock.sendall(data)

    def send(self, type: int, payload: bytes = b"", channel: int = 0) -> None:
        self.raw(f.encode(type, payload, channel))

    def request(self, type: int, *args: str | bytes | int, channel: int = 0) -> None:
        self.send(type, f.encode_args(*args), channel)

    def pump(self, seconds: float = 0.05) -> bool:
        """Take what came within ``seconds``; False: nothing did, or the end."""
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(1 << 20)
        except TimeoutError:
            return False
        for frame in self.decoder.feed(data):
            self._take(frame)
        return bool(data)

    def _take(self, frame: f.Frame) -> None:
        key = (frame.channel, frame.type)
        self.order.append(key)
        if frame.type in (f.STDOUT, f.STDERR):
            assert key not in self.ended, "output after its end"
            if not frame.payload:
                self.ended.add(key)
            self.streams[key] += frame.payload
            if frame.payload and self.generous:
                self.request(CREDIT, len(frame.payload), channel=frame.channel)
        elif frame.type == f.EXIT:
            code, signal, oom = (int(part) for part in f.decode_args(frame.payload))
            self.exits[frame.channel] = Exit(code, signal, oom)
        elif frame.type == CREDIT:
            self.credit[frame.channel] += int(f.decode_args(frame.payload)[0])
        else:
            self.answers.append(frame)

    def until(self, test: Callable[[], Any], seconds: float = 10) -> Any:
        end = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < end, (self.order[-20:], self.tails())
            self.pump()
        return test()

    def tails(self) -> dict[tuple[int, int], bytes]:
        return {key: bytes(data[-200:]) for key, data in self.streams.items()}

    # ---- conversation ----

    def sync(self, seconds: float = 10, settle: bool = False) -> None:
        """Begin a conversation; everything before the guest's answer is dropped."""
        marker = MARKER + os.urandom(16)
        self.raw(marker)
        self.send(f.HELLO, f.encode_args(f.VERSION))
        self.__init__(self.sock, self.generous)  # type: ignore[misc]
        end, data = time.monotonic() + seconds, b""
        while marker not in data:
            assert time.monotonic() < end, f"no answer to the marker: {data[-200:]!r}"
            try:
                self.sock.settimeout(0.2)
                got = self.sock.recv(1 << 16)
                assert got, "the guest hung up"
                data += got
            except TimeoutError:
                continue
        rest = data[data.index(marker) + len(marker) :]
        for frame in self.decoder.feed(rest):
            self._take(frame)
        hello = self.answer()
        assert hello.type == f.HELLO
        version, kind, *fields = (part.decode() for part in f.decode_args(hello.payload))
        assert (version, kind) == (f.VERSION, "guest")
        self.hello = dict(field.split("=", 1) for field in fields)

    def answer(self, seconds: float = 20) -> f.Frame:
        self.until(lambda: self.answers, seconds)
        return self.answers.pop(0)

    def ask(self, type: int, *args: str | bytes | int, channel: int = 0) -> list[bytes]:
        """The fields of OK, or RequestFailed."""
        self.request(type, *args, channel=channel)
        return self.result(channel)

    def result(self, channel: int = 0) -> list[bytes]:
        frame = self.answer()
        assert frame.channel == channel
        if frame.type == f.ERROR:
            raise RequestFailed(frame.payload)
        assert frame.type == f.OK, frame
        return f.decode_args(frame.payload)

    def launch(self, plan: bytes, step: int = f.MAX_PAYLOAD) -> int:
        """Send the plan; the workload's pid."""
        for at in range(0, len(plan), step):
            self.send(LAUNCH, plan[at : at + step])
        self.send(LAUNCH)
        return int(self.result()[0])

    def exec(
        self,
        *ops: Op,
        channel: int,
        id: str = "",
        tty: bool = False,
        stdin: bool = False,
        detach: bool = False,
    ) -> int:
        flags = (int(tty), int(stdin), int(detach))
        name = id or f"exec{channel}"
        return int(self.ask(f.EXEC, name, *flags, encode_ops(ops), channel=channel)[0])

    def stdin(self, data: bytes, channel: int = 0) -> None:
        """All of ``data``, as credit allows."""
        for at in range(0, len(data), 16384):
            part = data[at : at + 16384]
            self.until(partial(self._may_send, channel, len(part)))
            self.credit[channel] -= len(part)
            self.send(f.STDIN, part, channel)

    def _may_send(self, channel: int, size: int) -> bool:
        return self.credit[channel] >= size

    def eof(self, channel: int = 0) -> None:
        self.send(f.STDIN, b"", channel)

    def wait(self, channel: int = 0, seconds: float = 10) -> Exit:
        self.until(lambda: channel in self.exits, seconds)
        return self.exits[channel]

    def out(self, channel: int = 0) -> str:
        return self.streams[channel, f.STDOUT].decode()

    def err(self, channel: int = 0) -> str:
        return self.streams[channel, f.STDERR].decode()


class Guest:
    """vmm-init over a socket pair on this host, in mount and network namespaces of its own."""

    def __init__(self, libexec: Path, generous: bool = True, buffer: int = 0) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            if buffer:
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            program = libexec / "vmm-guest"  # of the build with sanitizers
            if not program.exists():
                program = libexec / "vmm-init"
            command = (str(program), "--guest-channel", str(theirs.fileno()))
            self.process = subprocess.Popen(
                ["unshare", "-mn", "--propagation", "private", *command],
                pass_fds=(theirs.fileno(),),
                stderr=subprocess.PIPE,
            )
        self.peer = Peer(ours, generous)

    def __enter__(self) -> Guest:
        self.peer.sync()
        return self

    def __exit__(self, *unused: object) -> None:
        self.peer.sock.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()

    def memory(self) -> int:
        """Resident bytes of vmm-init."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise LookupError("VmRSS")
