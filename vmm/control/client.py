"""A blocking connection to a shim."""

from __future__ import annotations

# The C part alone: `socket` itself brings in selectors and enum, 5 ms for every command.
import _socket as socket
from collections import deque
from struct import Struct
from time import monotonic
from types import TracebackType
from typing import NamedTuple

from vmm.control import frames
from vmm.control.frames import Decoder, Frame, FrameError, decode_args, encode, encode_args
from vmm.model.errors import LaunchError, ShimLost, UsageError, VmmError

#: Seconds a shim may take to answer what it can answer at once.
ANSWER_TIMEOUT = 60.0
#: Seconds for a start; the shim's own deadlines, a guest's boot among them, are shorter.
START_TIMEOUT = 600.0
#: Seconds for what a guest's control program does first (pausing).
CONTROL_TIMEOUT = 90.0
_SOCKET_PATH_MAX = 107
_TIMEVAL = Struct("@ll")


class Exit(NamedTuple):
    """How a process ended; ``code`` is 128 + ``signal`` when a signal ended it."""

    code: int
    signal: int = 0
    oom: bool = False


def _timeval(seconds: float) -> bytes:
    """struct timeval (setsockopt(2), SO_SNDTIMEO)."""
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))


class Control:
    """One connection. Requests wait for their answer; frames of streams that arrive meanwhile
    are kept for ``next_frame()``. Raises ShimLost when the shim goes away, VmmError when it
    refuses."""

    def __init__(self, connection: socket.socket, path: str) -> None:
        self._socket = connection
        self._decoder = Decoder()
        self._pending: deque[Frame] = deque()
        self._outgoing = bytearray()
        self._last_channel = 0
        self.path = path
        self.features: tuple[str, ...] = ()

    @classmethod
    def connect(cls, path: str, timeout: float = 5.0) -> Control:
        """Connect to ``path`` (``ctl.sock``) and exchange HELLO within ``timeout`` seconds."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A blocking connect waits for room in the listener's queue, as long as SO_SNDTIMEO says.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
        if len(path.encode()) > _SOCKET_PATH_MAX:
            raise UsageError(
                f"control socket {path}: longer than {_SOCKET_PATH_MAX} bytes",
                "use a shorter run directory",
            )
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise ShimLost(f"{path}: {error.strerror or error}") from None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(0))
        control = cls(connection, path)
        try:
            control._hello(timeout)
        except BaseException:
            control.close()
            raise
        return control

    def sibling(self) -> Control:
        """A second connection to the same shim, for requests that must not wait behind data, nor
        be lost: a shim that lives is waited for."""
        return Control.connect(self.path, ANSWER_TIMEOUT)

    def _hello(self, timeout: float) -> None:
        self.send(frames.HELLO, encode_args(frames.VERSION))
        frame = self.next_frame(timeout)
        if frame is None or frame.type != frames.HELLO:
            raise ShimLost(f"{self.path}: no shim answers there")
        version, *features = (arg.decode() for arg in decode_args(frame.payload))
        if version.split(".")[0] != frames.VERSION.split(".")[0]:
            raise VmmError(
                f"{self.path}: the shim speaks protocol {version}, this vmm {frames.VERSION}",
                "stop the workload with the vmm that started it",
            )
        self.features = tuple(features)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def new_channel(self) -> int:
        """A channel number not used on this connection yet."""
        self._last_channel += 1
        return self._last_channel

    # -- frames ---------------------------------------------------------------------------

    def send(self, type: int, payload: bytes = b"", channel: int = 0) -> None:
        """Send one frame, waiting as long as the shim takes it."""
        self.enqueue(type, payload, channel)
        self._socket.settimeout(None)
        data = bytes(self._outgoing)
        self._outgoing.clear()
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ShimLost(f"{self.path}: {error.strerror or error}") from None

    def enqueue(self, type: int, payload: bytes = b"", channel: int = 0) -> None:
        """Leave a frame for ``flush()``."""
        self._outgoing += encode(type, payload, channel)

    @property
    def unsent(self) -> int:
        """Bytes that ``flush()`` still has to send."""
        return len(self._outgoing)

    def flush(self) -> None:
        """Send what the shim takes now, without waiting."""
        self._socket.settimeout(0)
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError as error:
            self._outgoing.clear()
            if not self._receive_rest():
                raise ShimLost(f"{self.path}: {error.strerror or error}") from None

    def _receive_rest(self) -> bool:
        """The shim closed, but what it sent before is still to be read."""
        try:
            return self.has_pending() or self._receive(0)
        except ShimLost:
            return False

    def has_pending(self) -> bool:
        """A frame is there already, which poll(2) on the descriptor would not show."""
        return bool(self._pending)

    def next_frame(self, timeout: float | None = None) -> Frame | None:
        """The next frame, None after ``timeout`` seconds (0: only what has arrived)."""
        if self._pending:
            return self._pending.popleft()
        end = None if timeout is None else monotonic() + timeout
        while not self._pending:
            if not self._receive(None if end is None else max(0.0, end - monotonic())):
                return None
        return self._pending.popleft()

    def _receive(self, timeout: float | None) -> bool:
        """Read once; False when nothing came in time."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(262144)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            raise ShimLost(f"{self.path}: {error.strerror or error}") from None
        if not data:
            raise ShimLost(f"{self.path}: the shim closed the connection")
        try:
            self._pending.extend(self._decoder.feed(data))
        except FrameError as error:
            raise ShimLost(f"{self.path}: {error}") from None
        return True

    def _answer(self, wanted: int, channel: int, timeout: float | None) -> Frame:
        """The next ``wanted`` or ERROR frame on ``channel``; other frames are kept in order."""
        others: list[Frame] = []
        end = None if timeout is None else monotonic() + timeout
        try:
            while True:
                frame = self.next_frame(None if end is None else max(0.0, end - monotonic()))
                if frame is None:
                    raise ShimLost(f"{self.path}: the shim did not answer in {timeout:g} s")
                if frame.channel == channel and frame.type in (wanted, frames.ERROR):
                    return frame
                others.append(frame)
        finally:
            self._pending.extendleft(reversed(others))

    def _request(
        self,
        type: int,
        *args: str | bytes | int,
        channel: int = 0,
        timeout: float | None = ANSWER_TIMEOUT,
    ) -> list[bytes]:
        self.send(type, encode_args(*args), channel)
        frame = self._answer(frames.OK, channel, timeout)
        if frame.type == frames.ERROR:
            raise refusal(frame)
        return decode_args(frame.payload)

    # -- requests -------------------------------------------------------------------------

    def status(self) -> bytes:
        """The text of ``state.json`` as the shim would write it now."""
        return self._request(frames.STATUS)[0]

    def start(self) -> int:
        """Start the workload; its pid (a guest's: the hypervisor's) once execve(2) succeeded.
        Raises LaunchError, with the code 128 + n when it was stopped by a signal meanwhile."""
        return int(self._request(frames.START, timeout=START_TIMEOUT)[0])

    def begin_start(self) -> None:
        """Ask for the start without waiting for it: ``start_answer()``, and nothing else, follows
        on this connection."""
        self.send(frames.START)

    def start_answer(self, timeout: float) -> int | None:
        """What ``start()`` returns or raises; None if it has not come after ``timeout`` seconds."""
        frame = self.next_frame(timeout)
        if frame is None:
            return None
        if frame.type == frames.ERROR:
            raise refusal(frame)
        return int(decode_args(frame.payload)[0])

    def signal(self, number: int, *, all: bool = False, manual: bool = False) -> None:
        """Signal pid 1, or every process; ``manual``: when it ends, no restart follows."""
        self._request(frames.SIGNAL, number, int(all), int(manual))

    def stop(self, signal: int, timeout_ms: int) -> None:
        """Stop by hand: ``signal``, KILL after ``timeout_ms`` (-1 never, 0 at once); returns when
        the workload ended."""
        self._request(frames.STOP, signal, timeout_ms, timeout=None)

    def pause(self) -> None:
        """Hold every process still (a guest: the whole of it)."""
        self._request(frames.PAUSE, timeout=CONTROL_TIMEOUT)

    def unpause(self) -> None:
        self._request(frames.UNPAUSE, timeout=CONTROL_TIMEOUT)

    def stats(self) -> dict[str, int]:
        """Numbers by name (native/PROTOCOL.md, "Statistics"); what is not known is left out."""
        return frames.numbers_of(self._request(frames.STATS))

    def top(self) -> list[bytes]:
        """A line for each process, tab-separated (native/PROTOCOL.md, "Processes")."""
        self.send(frames.TOP)
        listing = bytearray()
        others: list[Frame] = []
        try:
            frame = self._next_answer(others)
            while frame.type == frames.LISTING:
                listing += frame.payload
                frame = self._next_answer(others)
        finally:
            self._pending.extendleft(reversed(others))
        if frame.type == frames.ERROR:
            raise refusal(frame)
        return bytes(listing).splitlines()

    def _next_answer(self, others: list[Frame]) -> Frame:
        """The next OK, ERROR or LISTING on channel 0; other frames go to ``others``."""
        wanted = (frames.OK, frames.ERROR, frames.LISTING)
        end = monotonic() + ANSWER_TIMEOUT
        while (frame := self.next_frame(max(0.0, end - monotonic()))) is not None:
            if frame.channel == 0 and frame.type in wanted:
                return frame
            others.append(frame)
        raise ShimLost(f"{self.path}: the shim did not answer in {ANSWER_TIMEOUT:g} s")

    def update(self, policy: str = "", max_retries: int = 0, operations: bytes = b"") -> None:
        """Change the restart policy ("" leaves it as it is), and carry out ``operations``, encoded
        ``cgroup.write`` and ``cgroup.try``, on the running workload."""
        self._request(frames.UPDATE, policy, max_retries, operations)

    def file(self, path: str, content: bytes) -> None:
        """New content of a file that was generated for a guest; ``content`` below 64 KiB. VmmError
        for a workload that sees the host's own file."""
        payload = encode_args(path, content)
        if len(payload) > frames.MAX_PAYLOAD:
            raise VmmError(
                f"{path}: {len(content)} bytes are more than a guest can be sent at once"
            )
        self._request(frames.FILE, path, content)

    def wait(self, *, promise: bool = False, timeout: float | None = None) -> Exit:
        """Wait for the end for good; with ``promise`` this client will reap."""
        self.expect_exit(promise=promise)
        return self._exit(timeout)

    def wait_next(self, timeout: float | None = None) -> Exit:
        """Wait for the next end, even if a restart follows."""
        self.expect_exit(next=True)
        return self._exit(timeout)

    def expect_exit(self, *, promise: bool = False, next: bool = False) -> None:
        """Ask for an EXIT frame on channel 0 without waiting for it (``pump`` reads it)."""
        if next:
            self.send(frames.WAIT_NEXT, encode_args())
        else:
            self.send(frames.WAIT, encode_args(int(promise)))

    def _exit(self, timeout: float | None) -> Exit:
        frame = self._answer(frames.EXIT, 0, timeout)
        if frame.type == frames.ERROR:
            raise refusal(frame)
        return parse_exit(frame)

    def attach(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> int:
        """Let the workload's streams flow on channel 0, which is returned."""
        self._request(frames.ATTACH, int(stdin), int(stdout), int(stderr))
        return 0

    def exec(
        self,
        exec_id: str,
        operations: bytes,
        *,
        tty: bool = False,
        stdin: bool = False,
        detach: bool = False,
        size: tuple[int, int] | None = None,
    ) -> tuple[int, int]:
        """Start a further process; (channel, pid). Its streams, then EXIT, come on the channel,
        unless ``detach``. ``size``: rows and columns its terminal begins with. Raises
        LaunchError."""
        channel = self.new_channel()
        flags = (int(tty), int(stdin), int(detach))
        payload = encode_args(exec_id, *flags, operations, *(size or ()))
        if len(payload) > frames.MAX_PAYLOAD:
            raise LaunchError(
                f"exec: command and environment take {len(payload)} bytes, "
                f"{frames.MAX_PAYLOAD} are possible",
                code=126,
                hint="pass the data on standard input or in a file",
            )
        self.send(frames.EXEC, payload, channel)
        frame = self._answer(frames.OK, channel, ANSWER_TIMEOUT)
        if frame.type == frames.ERROR:
            raise refusal(frame)
        return channel, int(decode_args(frame.payload)[0])

    def exec_attach(self, exec_id: str) -> int:
        """Streams of a running exec; the channel."""
        channel = self.new_channel()
        self._request(frames.EXEC_ATTACH, exec_id, channel=channel)
        return channel

    def exec_signal(self, exec_id: str, number: int) -> None:
        self._request(frames.EXEC_SIGNAL, exec_id, number)

    def resize(self, rows: int, columns: int, *, exec_id: str = "") -> None:
        """Set the size of the workload's terminal, or of an exec's."""
        self._request(frames.RESIZE, rows, columns, *((exec_id,) if exec_id else ()))

    def detach(self, channel: int = 0) -> None:
        """Stop the streams of ``channel``; the workload goes on."""
        self._request(frames.DETACH, channel=channel)

    def write_stdin(self, data: bytes, channel: int = 0) -> None:
        """Standard input of what ``channel`` is attached to; empty is the end of file."""
        self.send(frames.STDIN, data[: frames.MAX_PAYLOAD], channel)
        for at in range(frames.MAX_PAYLOAD, len(data), frames.MAX_PAYLOAD):
            self.send(frames.STDIN, data[at : at + frames.MAX_PAYLOAD], channel)

    def wait_closed(self, timeout: float = 10.0) -> bool:
        """Wait until the shim is gone (after EXIT: cgroups and socket are removed by then);
        False after ``timeout`` seconds."""
        end = monotonic() + timeout
        try:
            while (left := end - monotonic()) > 0:
                self._pending.clear()
                self._receive(left)
        except ShimLost:
            return True
        return False


def parse_exit(frame: Frame) -> Exit:
    """The values of an EXIT frame."""
    code, signal, oom = decode_args(frame.payload)
    return Exit(int(code), int(signal), oom == b"1")


def refusal(frame: Frame) -> VmmError:
    """An ERROR frame as the error it stands for."""
    code, step, message = (arg.decode(errors="replace") for arg in decode_args(frame.payload))
    if int(code) >= 125:
        return LaunchError(message, step=step, code=int(code))
    return VmmError(message)
