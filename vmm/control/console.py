"""A guest's serial console on the local terminal."""

from __future__ import annotations

import contextlib
import os
import select

from vmm.control.terminal import Detector, RawMode, parse_detach_keys
from vmm.model.errors import HostError

_READ = 1 << 14


def converse(path: str, *, detach_keys: str, stdin_fd: int = 0, stdout_fd: int = 1) -> None:
    """Carry bytes between the terminal device ``path`` and the local streams until the detach
    keys, the end of the input, or the end of the guest. A local terminal is raw meanwhile."""
    detector = Detector(parse_detach_keys(detach_keys))
    try:
        device = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"console {path}: {error.strerror}") from None
    raw = RawMode(stdin_fd if os.isatty(stdin_fd) else None)
    try:
        with raw:
            _carry(device, detector, stdin_fd, stdout_fd)
    finally:
        os.close(device)


def _carry(device: int, detector: Detector, stdin_fd: int, stdout_fd: int) -> None:
    poller = select.poll()
    poller.register(device, select.POLLIN)
    poller.register(stdin_fd, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == device and not _show(device, stdout_fd):
                return
            if fd == stdin_fd and not _type(device, detector, stdin_fd):
                return


def _show(device: int, stdout_fd: int) -> bool:
    """What the guest printed; False at its end (EIO of a terminal without its other side)."""
    try:
        data = os.read(device, _READ)
    except BlockingIOError:
        return True
    except OSError:
        return False
    while data:
        data = data[os.write(stdout_fd, data) :]
    return True


def _type(device: int, detector: Detector, stdin_fd: int) -> bool:
    """What was typed; False when the detach keys were, or at the end of the input. A guest that
    does not read its console loses it, as on a real line."""
    data = os.read(stdin_fd, _READ)
    out, detached = detector.feed(data)
    with contextlib.suppress(BlockingIOError):
        os.write(device, out)
    return bool(data) and not detached
