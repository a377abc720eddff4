"""A guest without a machine: what vmm-init does on its end of the channel (native/PROTOCOL.md, "The
guest's channel"), with the workload as a process of the host. ``guestpeer.py CHANNEL MODE``.

A mode other than ``good`` misbehaves in one way (MISDEEDS); ``slow`` boots until CHANNEL.go is
there, ``stuck`` too and says in CHANNEL.stuck that it will not power off, ``button`` says a
thousand times that its power button was pressed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from vmm.control import frames as f

CREDIT = 256 << 10
MAGIC = b"\0VMMSYNC"
LAUNCH, CREDIT_BACK, SHUTDOWN, POWER = 40, 41, 42, 44


def records(data: bytes) -> list[list[bytes]]:
    """The records of a plan or of an exec's operations."""
    found, at = [], 0
    while at < len(data):
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        record = []
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, at)
            record.append(data[at + 4 : at + 4 + length])
            at += 5 + length
        found.append(record)
    return found


def command(data: bytes) -> list[str]:
    return next([a.decode() for a in r[1:]] for r in records(data) if r[0] == b"exec")


class Session:
    """A process, its streams and their credits."""

    def __init__(self, channel: int, exec_id: str, argv: list[str], tty: bool, stdin: bool) -> None:
        self.channel, self.id, self.tty, self.credit = channel, exec_id, tty, CREDIT
        self.input, self.input_eof, self.done = bytearray(), False, False
        self.master = -1
        if tty:
            self.master, slave = pty.openpty()
            self.process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=self._lead
            )
            os.close(slave)
            self.outputs = {f.STDOUT: self.master}
            self.stdin = self.master
        else:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert self.process.stdout and self.process.stderr
            self.outputs = {
                f.STDOUT: self.process.stdout.fileno(),
                f.STDERR: self.process.stderr.fileno(),
            }
            self.stdin = self.process.stdin.fileno() if self.process.stdin else -1
        for fd in {*self.outputs.values(), self.stdin} - {-1}:
            os.set_blocking(fd, False)

    @staticmethod
    def _lead() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self) -> int:
        """Pass on what can be; the bytes done with."""
        try:
            done = os.write(self.stdin, self.input) if self.stdin >= 0 else len(self.input)
        except BlockingIOError:
            done = 0
        except OSError:
            done = len(self.input)
        del self.input[:done]
        if self.input_eof and not self.input and not self.tty and self.stdin >= 0:
            assert self.process.stdin
            self.process.stdin.close()
            self.stdin = -1
        return done


class Peer:
    def __init__(self, path: str, mode: str) -> None:
        self.path, self.mode = path, mode
        self.socket: socket.socket | None = None
        self.plan = b""
        self.sessions: dict[int, Session] = {}
        self.exit: tuple[int, int] | None = None
        self.leave_at = float("inf")

    # -- frames

    def send(self, type: int, payload: bytes = b"", channel: int = 0) -> None:
        self.raw(f.encode(type, payload, channel))

    def raw(self, data: bytes) -> None:
        if self.socket:
            with contextlib.suppress(OSError):
                self.socket.sendall(data)

    def ok(self, channel: int, *args: str | int) -> None:
        self.send(f.OK, f.encode_args(*args), channel)

    def connect(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(self.path)
        except OSError:
            self.socket = None
            time.sleep(0.1)
            return
        self.decoder: f.Decoder | None = None
        self.seen = b""

    def hello(self) -> None:
        state, code, number, pid = "idle", 0, 0, 0
        if self.exit:
            state, (code, number) = "exited", self.exit
        elif self.sessions:
            state, pid = "running", self.sessions[0].process.pid
        fields = (f"state={state}", f"pid={pid}", f"code={code}", f"signal={number}", "oom=0")
        self.send(f.HELLO, f.encode_args("1.0", "guest", *fields))

    def synchronise(self, data: bytes) -> list[f.Frame]:
        self.seen += data
        at = self.seen.find(MAGIC)
        if at < 0 or len(self.seen) < at + 24:
            return []
        for channel in [c for c in self.sessions if c]:
            self.sessions.pop(channel).process.kill()
        if self.sessions:
            self.sessions[0].credit = CREDIT
        self.plan = b""
        self.raw(b"left over" * 300 + self.seen[at : at + 24])
        self.hello()
        self.decoder = f.Decoder()
        return self.decoder.feed(self.seen[at + 24 :])

    def receive(self) -> None:
        assert self.socket
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.socket = None
            return
        for frame in self.decoder.feed(data) if self.decoder else self.synchronise(data):
            self.handle(frame)

    # -- requests

    def handle(self, frame: f.Frame) -> None:
        if frame.type == f.HELLO:
            return
        if frame.type == LAUNCH:
            self.plan += frame.payload
            if not frame.payload:
                self.launch()
            return
        session = self.sessions.get(frame.channel)
        if frame.type == f.STDIN:
            if session:
                session.input += frame.payload
                session.input_eof |= not frame.payload
            return
        args = f.decode_args(frame.payload)
        if frame.type == CREDIT_BACK:
            if session:
                session.credit += int(args[0])
                assert session.credit <= CREDIT
            return
        if frame.type == SHUTDOWN:
            if self.mode != "stuck":
                sys.exit(0)
            Path(self.path + ".stuck").touch()
            return
        self.answer(frame, args)

    def answer(self, frame: f.Frame, args: list[bytes]) -> None:
        session = self.sessions.get(frame.channel)
        if self.mode == "mute":
            return
        if frame.type == f.EXEC:
            self.start(frame.channel, args[0].decode(), command(args[4]), args[1] == b"1", True)
        elif frame.type == f.SIGNAL:
            if self.mode != "immortal":
                self.sessions[0].process.send_signal(int(args[0]))
            self.ok(0)
        elif frame.type == f.EXEC_SIGNAL:
            for s in self.sessions.values():
                if s.channel and s.id == args[0].decode():
                    s.process.send_signal(int(args[1]))
            self.ok(0)
        elif frame.type == f.RESIZE and session:
            session.resize(int(args[0]), int(args[1]))
            self.ok(frame.channel)
        elif frame.type == f.STATS:
            self.ok(0, "memory=4096", "evil\n=1", "cpu_ns=77")
        elif frame.type == f.TOP:
            self.send(f.LISTING, b"1\t0\t0\tS\t")
            self.send(f.LISTING, b"\x1b[31mred\n2\t1\n")
            self.ok(0)
        elif frame.type == f.FILE:
            Path(self.path + ".file").write_bytes(b"|".join(args))
            self.ok(0)

    def launch(self) -> None:
        magic, rest = self.plan[:7], self.plan[7:]
        sections = [r[1] for r in records(rest) if r[0] == b"section"]
        assert (magic, sections) == (b"VMMLP1\n", [b"host", b"child"])
        stdio = next(r[1:] for r in records(rest) if r[0] == b"guest.stdio")
        misdeed = MISDEEDS.get(self.mode)
        if misdeed and misdeed(self):
            return
        self.start(0, "", command(rest), stdio[0] == b"1", stdio[1] == b"1")

    def start(self, channel: int, exec_id: str, argv: list[str], tty: bool, stdin: bool) -> None:
        try:
            self.sessions[channel] = Session(channel, exec_id, argv, tty, stdin)
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            text = f"{argv[0]}: {os.strerror(error.errno or 0)}\x1b[2J\n\u2028"
            self.send(f.ERROR, f.encode_args(code, "exec " + argv[0], text), channel)
            return
        self.ok(channel, self.sessions[channel].process.pid)
        if self.mode == "button" and not channel:
            time.sleep(0.5)  # its trap is set by then
            for _ in range(1000):
                self.send(POWER, f.encode_args())

    # -- the loop

    def pump(self, session: Session) -> None:
        if session.input or session.input_eof:
            done = session.write()
            if done:
                self.send(CREDIT_BACK, f.encode_args(done), session.channel)
        if session.process.poll() is not None and not session.outputs and not session.done:
            code = session.process.returncode
            session.done = True
            exit = (128 - code, -code) if code < 0 else (code, 0)
            self.send(f.EXIT, f.encode_args(*exit, 0), session.channel)
            if session.channel:
                del self.sessions[session.channel]
            else:
                self.exit, self.leave_at = exit, time.monotonic() + 10

    def forward(self, session: Session, type: int) -> None:
        fd = session.outputs[type]
        try:
            data = os.read(fd, min(session.credit, 32768))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        session.credit -= len(data)
        self.send(type, data, session.channel)
        if not data:
            del session.outputs[type]

    def round(self) -> None:
        if not self.socket:
            self.connect()
            return
        readable = {self.socket.fileno(): (None, 0)}
        for session in self.sessions.values():
            for type, fd in session.outputs.items():
                if session.credit and self.decoder:
                    readable[fd] = (session, type)  # type: ignore[assignment]
        for fd in select.select(list(readable), [], [], 0.01)[0]:
            owner, type = readable[fd]
            if owner is None:
                self.receive()
            elif self.socket:
                self.forward(owner, type)
        for session in list(self.sessions.values()):
            if self.socket and self.decoder:
                self.pump(session)
        if time.monotonic() > self.leave_at:
            sys.exit(0)


# -- misdeeds, at the moment of the launch; True: and nothing is launched ---------------------


def flood(peer: Peer) -> bool:
    peer.ok(0, 5)
    while peer.socket:
        try:
            peer.socket.sendall(f.encode(f.STDOUT, bytes(65536)))
        except OSError:
            peer.socket = None
    return True


def lie(peer: Peer) -> bool:
    peer.ok(0, 5)
    for type in (f.STDOUT, f.STDERR):
        peer.send(type)
    peer.send(f.EXIT, f.encode_args(0, 0, 0))
    time.sleep(3600)
    return True


def after_launch(*frames: bytes) -> Callable[[Peer], bool]:
    def deed(peer: Peer) -> bool:
        peer.ok(0, 5)
        for frame in frames:
            peer.raw(frame)
        time.sleep(3600)
        return True

    return deed


def silent(peer: Peer) -> bool:
    time.sleep(3600)
    return True


def vanish(peer: Peer) -> bool:
    peer.ok(0, 5)
    peer.send(f.STDOUT, b"last words\n")
    time.sleep(0.2)
    os._exit(3)


def die(peer: Peer) -> bool:
    os._exit(3)


MISDEEDS = {
    "flood": flood,
    "lie": lie,
    "silent": silent,
    "vanish": vanish,
    "die": die,
    "unasked": after_launch(f.encode(f.OK)),
    "unknown": after_launch(f.encode(77)),
    "framing": after_launch(b"\xff" * 64),
    "elsewhere": after_launch(f.encode(f.STDOUT, b"x", 9)),
    "credit": after_launch(f.encode(CREDIT_BACK, f.encode_args(1))),
    "listing": after_launch(f.encode(f.LISTING, b"x" * 60000)),
    "exit-of-none": after_launch(f.encode(f.EXIT, f.encode_args(0, 0, 0), 3)),
    "greets-twice": after_launch(f.encode(f.HELLO, f.encode_args("1.0", "guest"))),
    "garbage": after_launch(random.Random(3).randbytes(100000)),
    "odd-exit": after_launch(f.encode(f.EXIT, f.encode_args("x" * 5000, 0, 0))),
}


def noise(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(random.randbytes(65536))
    time.sleep(3600)


def main(path: str, mode: str) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if mode == "noise":
        noise(path)
    if mode == "absent":
        time.sleep(3600)
    while mode in ("slow", "stuck") and not os.path.exists(path + ".go"):
        time.sleep(0.02)
    peer = Peer(path, mode)
    while True:
        peer.round()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
