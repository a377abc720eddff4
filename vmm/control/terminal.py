"""Carries an attached session's streams between local descriptors and a shim."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
from typing import TYPE_CHECKING

from vmm.control import frames
from vmm.control.client import Control, parse_exit
from vmm.control.frames import Frame, encode_args
from vmm.model.errors import HostError, ShimLost, UsageError, VmmError

if TYPE_CHECKING:
    from vmm.control.starting import Starting

DETACH_KEYS = "ctrl-p,ctrl-q"
#: A pipe that poll(2) calls writable takes this much without blocking (pipe(7), PIPE_BUF).
_PIPE_CHUNK = 4096
_FILE_CHUNK = 1 << 16
#: Bytes kept for a local reader before the shim is no longer read.
_HELD_MAX = 1 << 18
_READ = 1 << 15
#: Seconds for the answer to a start when the end is told already; it was sent before.
_TOLD = 1.0

_PROXIED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
_FATAL = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")
_CONTROL_KEYS = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_detach_keys(text: str) -> bytes:
    """Docker's notation: a comma-separated list of characters and ``ctrl-X``, X a letter or one
    of ``@ [ \\ ] ^ _``; empty for none. Raises UsageError."""
    return bytes(_parse_key(key, text) for key in text.split(",")) if text else b""


def _parse_key(key: str, text: str) -> int:
    if len(key) == 1 and key.isascii():
        return ord(key)
    name = key.removeprefix("ctrl-").lower()
    if key.startswith("ctrl-") and len(name) == 1:
        if "a" <= name <= "z":
            return ord(name) - ord("a") + 1
        if name in _CONTROL_KEYS:
            return _CONTROL_KEYS[name]
    raise UsageError(
        f"--detach-keys {text!r}: {key!r} is not a key",
        "use single characters or ctrl-a … ctrl-z, ctrl-@ [ \\ ] ^ _, separated by commas",
    )


class Detector:
    """Finds the detach keys in what is typed; a beginning of them is held back."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on, and whether the keys were typed."""
        if not self._keys:
            return data, False
        out = bytearray()
        for byte in data:
            if byte != self._keys[self._matched]:
                out += self._keys[: self._matched]
                self._matched = 0
            if byte != self._keys[self._matched]:
                out.append(byte)
                continue
            self._matched += 1
            if self._matched == len(self._keys):
                return bytes(out), True
        return bytes(out), False


class _Sink:
    """A local descriptor to write to; never blocks beyond what poll(2) promised."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.held = bytearray()
        self.broken = False
        self.lost = ""
        try:
            self._chunk = _FILE_CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else _PIPE_CHUNK
        except OSError:
            self.broken = True

    def add(self, data: bytes) -> None:
        if not self.broken:
            self.held += data

    def write(self) -> None:
        """Write once; raises BrokenPipeError when the reader is gone."""
        try:
            del self.held[: os.write(self.fd, self.held[: self._chunk])]
        except BlockingIOError:
            return
        except OSError as error:
            self.broken = True
            self.held.clear()
            if error.errno == errno.EPIPE:
                raise
            self.lost = os.strerror(error.errno or 0)


class _Signals:
    """Turns signals into readable bytes while a session lasts; nothing outside the main thread,
    where Python delivers none."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._former: dict[int, object] = {}
        self.fd = self._writer = -1

    def __enter__(self) -> _Signals:
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._former_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        except ValueError:
            return self
        for name in self._names:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, _noted)
        return self

    def read(self) -> bytes:
        """The numbers of the signals that came."""
        try:
            return os.read(self.fd, 512)
        except BlockingIOError:
            return b""

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        with contextlib.suppress(ValueError, AttributeError):
            signal.set_wakeup_fd(self._former_wakeup)
        os.close(self.fd)
        os.close(self._writer)


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor carries the signal."""


class RawMode:
    """The local terminal without echo, line editing and signal keys (termios(3), raw mode)."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._former: list[object] | None = None

    def __enter__(self) -> RawMode:
        self.apply()
        return self

    def apply(self) -> None:
        if self._fd is None or not os.isatty(self._fd):
            return
        import termios
        import tty

        self._former = self._former or termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)

    def __exit__(self, *_: object) -> None:
        if self._former is None or self._fd is None:
            return
        import termios

        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._former)  # type: ignore[arg-type]


class _Ended(Exception):
    """The session is over: an exit code, or None when it was detached."""

    def __init__(self, code: int | None) -> None:
        self.code = code


class _Pump:
    def __init__(
        self,
        control: Control,
        channel: int,
        exec_id: str,
        stdin_fd: int | None,
        sinks: dict[int, _Sink],
        tty: bool,
        keys: bytes,
        starting: Starting | None,
    ) -> None:
        self._control = control
        self._channel = channel
        self._exec_id = exec_id
        self._stdin = stdin_fd
        self._sinks = sinks
        self._tty = tty
        self._detector = Detector(keys)
        self._starting = starting

    def run(self, signals: _Signals, raw: RawMode) -> int | None:
        try:
            self.send_size()
            while True:
                self._receive()
                for fd, _ in self._poll(signals.fd):
                    if fd == signals.fd:
                        self._on_signals(signals.read(), raw)
                    elif fd == self._stdin:
                        self._read_stdin()
                self._check_start()
                self._write()
                self._control.flush()
        except _Ended as end:
            self._drain()
            return end.code
        except ShimLost:
            self._drain()
            raise

    def _poll(self, signal_fd: int) -> list[tuple[int, int]]:
        poller = select.poll()
        poller.register(signal_fd, select.POLLIN)
        if self._starting:
            poller.register(self._starting.fileno(), select.POLLIN)
        sending = select.POLLOUT if self._control.unsent else 0
        reading = 0 if self._held() >= _HELD_MAX else select.POLLIN
        if sending | reading:
            poller.register(self._control.fileno(), sending | reading)
        if self._stdin is not None and not self._control.unsent:
            poller.register(self._stdin, select.POLLIN)
        for sink in self._sinks.values():
            if sink.held:
                poller.register(sink.fd, select.POLLOUT)
        return poller.poll()

    def _check_start(self, timeout: float = 0) -> None:
        """Raises LaunchError when the start has failed."""
        if self._starting and self._starting.answered(timeout):
            self._starting = None

    def _held(self) -> int:
        return sum(len(sink.held) for sink in self._sinks.values())

    def _receive(self) -> None:
        while self._held() < _HELD_MAX:
            frame = self._control.next_frame(0)
            if frame is None:
                return
            if frame.channel == self._channel:
                self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        if frame.type in self._sinks:
            self._sinks[frame.type].add(frame.payload)
        elif frame.type == frames.EXIT:
            self._check_start(_TOLD)  # of a start that failed both tell: its error says more
            raise _Ended(parse_exit(frame).code)

    def _write(self) -> None:
        """A reader of standard output that left ends the session, as SIGPIPE would."""
        poller = select.poll()
        waiting = {sink.fd: sink for sink in self._sinks.values() if sink.held}
        for fd in waiting:
            poller.register(fd, select.POLLOUT)
        for fd, _ in poller.poll(0) if waiting else ():
            try:
                waiting[fd].write()
            except BrokenPipeError:
                if waiting[fd] is self._sinks[frames.STDOUT]:
                    raise

    def _drain(self) -> None:
        """Write all that arrived, waiting for the local readers."""
        for sink in self._sinks.values():
            while sink.held:
                select.select([], [sink.fd], [])
                sink.write()

    def _read_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        out, detached = self._detector.feed(data) if self._tty else (data, False)
        if out or not data:
            self._control.enqueue(frames.STDIN, out, self._channel)
        if not data:
            self._stdin = None
        if detached:
            self._control.send(frames.DETACH, encode_args(), self._channel)
            raise _Ended(None)

    def _on_signals(self, numbers: bytes, raw: RawMode) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self.send_size()
            elif number == signal.SIGCONT:
                raw.apply()
                self.send_size()
            elif self._tty and number != signal.SIGCHLD:
                raise _Killed(number)
            elif not self._tty:
                self._forward(number)

    def _forward(self, number: int) -> None:
        """On a connection of its own, since this one may be full of standard input."""
        with contextlib.suppress(VmmError), self._control.sibling() as other:
            if self._exec_id:
                other.exec_signal(self._exec_id, number)
            else:
                other.signal(number)

    def send_size(self) -> None:
        """Tell the shim the local terminal's size."""
        size = terminal_size(self._sinks[frames.STDOUT].fd, self._stdin) if self._tty else None
        if size:
            self._control.enqueue(frames.RESIZE, encode_args(*size), self._channel)


def terminal_size(*fds: int | None) -> tuple[int, int] | None:
    """Rows and columns of the first of these that is a terminal."""
    for fd in fds:
        with contextlib.suppress(OSError, TypeError):
            columns, rows = os.get_terminal_size(fd)  # type: ignore[arg-type]
            return rows, columns
    return None


class _Killed(BaseException):
    """A deadly signal came while the terminal was raw."""

    def __init__(self, number: int) -> None:
        self.number = number


def pump(
    control: Control,
    *,
    channel: int = 0,
    stdin_fd: int | None = None,
    stdout_fd: int = 1,
    stderr_fd: int = 2,
    tty: bool = False,
    exec_id: str = "",
    detach_keys: str = DETACH_KEYS,
    proxy_signals: bool = False,
    starting: Starting | None = None,
) -> int | None:
    """Carry the streams of an attached ``channel`` until its EXIT frame; the exit code, or None
    when the detach keys were typed.

    For the workload (channel 0) the caller asked for the exit with ``expect_exit()``. With
    ``tty`` the local terminal is raw meanwhile and its size is kept up to date; without,
    ``proxy_signals`` passes signals on. ``starting`` is the workload's start if that is under way:
    it goes on when the session ends before. Raises LaunchError when it fails, ShimLost when the
    shim goes away, BrokenPipeError when the reader of ``stdout_fd`` does, HostError when all went
    well but for output that could not be written.
    """
    sinks = {frames.STDOUT: _Sink(stdout_fd), frames.STDERR: _Sink(stderr_fd)}
    wanted = (*_FATAL, "SIGWINCH", "SIGCONT") if tty else _PROXIED if proxy_signals else ()
    try:
        keys = parse_detach_keys(detach_keys)
        session = _Pump(control, channel, exec_id, stdin_fd, sinks, tty, keys, starting)
        with _Signals(wanted) as signals, RawMode(stdin_fd if tty else None) as raw:
            code = session.run(signals, raw)
    except _Killed as killed:
        if starting:
            starting.leave()
        _die(killed.number)
        return 128 + killed.number
    finally:
        if starting:
            starting.leave()
    lost = [sink.lost for sink in sinks.values() if sink.lost]
    if lost and code == 0:
        raise HostError(f"the workload's output could not be written: {lost[0]}")
    return code


def _die(number: int) -> None:
    """The terminal is itself again: end as the signal would have ended us."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
