"""Starts, ends and pauses one domain: the program that a shim runs (native/LAUNCH.md, ``guest``).

``python -I control.py URI UUID start|destroy|suspend|resume|reason``.  It is run for every start of
a guest, so it imports nothing but libvirt.  Exit code 0, else one line on standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

#: Where libvirt keeps QEMU's pid files: the system's; and beside the socket of a session.
PID_DIRECTORIES = ("/run/libvirt/qemu",)
PID_BESIDE = ("qemu/run", "qemu")
#: Seconds that libvirtd may take to let one in: long, as one that was just started looks at every
#: emulator first; but what ends a guest works without it.
CONNECTS = {"destroy": 5.0, "reason": 5.0}
CONNECTS_ELSE = 60.0
#: And then to do it. An emulator of which the pid is known is ended without it then.
HANGS = {"destroy": 5.0, "reason": 10.0}
#: As long again for one of which there is no pid yet: libvirtd may be at starting it.
STARTS = 15.0
#: Why a domain is off (virDomainShutoffReason), for a workload's state.
_OFF = {
    "VIR_DOMAIN_SHUTOFF_SHUTDOWN": "the guest powered itself off, or its kernel panicked",
    "VIR_DOMAIN_SHUTOFF_DESTROYED": "the guest was destroyed through libvirt",
    "VIR_DOMAIN_SHUTOFF_CRASHED": "the emulator of the guest died",
    "VIR_DOMAIN_SHUTOFF_MIGRATED": "the guest was migrated to another host",
    "VIR_DOMAIN_SHUTOFF_SAVED": "the guest was saved to a file",
    "VIR_DOMAIN_SHUTOFF_FAILED": "the guest could not be started",
    "VIR_DOMAIN_SHUTOFF_DAEMON": "libvirtd ended the guest",
}


def socket_of(uri: str) -> str:
    """The socket that a URI names (uri.html, "unix transport"), "" for libvirt's own."""
    _, _, query = uri.partition("?")
    words = (word.partition("=") for word in query.split("&"))
    return next((value for name, _, value in words if name == "socket"), "")


def state_directories(uri: str) -> list[str]:
    """Where libvirtd keeps what it knows of running domains."""
    beside = os.path.dirname(socket_of(uri))
    return [*PID_DIRECTORIES, *(f"{beside}/{name}" for name in PID_BESIDE if beside)]


def pid_of(uri: str, name: str, uuid: str) -> int:
    """The pid of the QEMU that runs a domain, by its pid file and command line; 0 for none."""
    files = (f"{path}/{name}.pid" for path in state_directories(uri))
    return next(filter(None, (_read(file, uuid) for file in files)), 0)


def virtiofsd_of(uri: str, number: int) -> int:
    """The pid of the virtiofsd of the running domain with this number, 0 for none; its pid file is
    ``<number>-<name, cut>-fs0-fs.pid``."""
    for path in state_directories(uri):
        if os.path.isdir(path):
            for name in os.listdir(path):
                if name.startswith(f"{number}-") and name.endswith("-fs.pid"):
                    with contextlib.suppress(OSError, ValueError), open(f"{path}/{name}") as file:
                        return int(file.read(32))
    return 0


def pid_by_uuid(uri: str, uuid: str) -> int:
    """The same where only libvirt knows the name, and is not there to ask."""
    for path in state_directories(uri):
        if os.path.isdir(path):
            files = (name for name in os.listdir(path) if name.endswith(".pid"))
            if pid := next(filter(None, (_read(f"{path}/{name}", uuid) for name in files)), 0):
                return pid
    return 0


def _read(path: str, uuid: str) -> int:
    """The pid in a file, if that process runs the domain; a user's file names the user's own."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(32))
            if os.fstat(file.fileno()).st_uid not in (0, os.stat(f"/proc/{pid}").st_uid):
                return 0
    except (OSError, ValueError):
        return 0
    return pid if is_emulator(pid, uuid) else 0


def is_emulator(pid: int, uuid: str) -> bool:
    """Whether a process is the one that runs this domain, by its command line (qemu(1), -uuid);
    whose pid file it was may be another user, and the identity is in this program's as well."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return (b"-uuid", uuid.encode()) in pairwise(words)


def end_alone(pid: int, uuid: str) -> bool:
    """End a domain's emulator while libvirtd is down (which notes it when it is up again);
    whether it is gone."""
    import select
    import signal

    try:
        process = os.pidfd_open(pid)
    except OSError:
        return not is_emulator(pid, uuid)
    try:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if not is_emulator(pid, uuid):
                break
            signal.pidfd_send_signal(process, signum)
            select.select([process], [], [], 5)
    except ProcessLookupError:
        return True
    finally:
        os.close(process)
    return not is_emulator(pid, uuid)


def start(libvirt: Any, domain: Any) -> None:
    """Start it, afresh: what an earlier monitor left running is ended first."""
    if domain.isActive():
        destroy(libvirt, domain)
    domain.create()


def destroy(libvirt: Any, domain: Any) -> None:
    """End it at once; one that is off stays so."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise


def suspend(_libvirt: Any, domain: Any) -> None:
    domain.suspend()


def resume(_libvirt: Any, domain: Any) -> None:
    domain.resume()


def settled(libvirt: Any, domain: Any) -> tuple[int, int]:
    """State and reason. The channel ends a little before the emulator, and that before libvirt
    takes note of it: seconds where its end is reaped late."""
    for _ in range(100):
        state, why = domain.state()
        if state not in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTDOWN):
            break
        time.sleep(0.05)
    return state, why


def reason(libvirt: Any, domain: Any) -> None:
    """One line on why it is off."""
    state, why = settled(libvirt, domain)
    if state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):
        known = {getattr(libvirt, name, None): text for name, text in _OFF.items()}
        print(known.get(why, "the guest is off, and libvirt does not know why"))
    elif state == libvirt.VIR_DOMAIN_PAUSED:
        print("the guest is paused")
    else:
        print("the guest runs, but its control channel is gone")


ACTIONS = {f.__name__: f for f in (start, destroy, suspend, resume, reason)}


def _disconnected(uri: str, uuid: str, action: str, said: str, *, hangs: bool = False) -> int:
    """What ends a guest works without libvirtd too. One that ``hangs`` may be at starting an
    emulator, of which there is no pid yet: that it has ended is then not known."""
    if action == "destroy":
        pid = pid_by_uuid(uri, uuid)
        if end_alone(pid, uuid) if pid else not hangs:
            print("the emulator was ended without libvirt")
            return 0
    if action == "reason" and not pid_by_uuid(uri, uuid):
        print("the emulator of the guest ended while libvirt was down")
        return 0
    print(f"no connection to libvirt ({uri}): {said}; vmm system libvirt start", file=sys.stderr)
    return 1


def act(uri: str, uuid: str, action: str, opened: Callable[[], None]) -> int:
    """Connect, find the domain, do it; the exit code. ``opened`` is called in between."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        return _disconnected(uri, uuid, action, " ".join(str(error).split()))
    finally:
        opened()
    try:
        domain = connection.lookupByUUIDString(uuid)
        ACTIONS[action](libvirt, domain)
        if action == "start":
            print(f"pid {pid_of(uri, domain.name(), uuid)}")
            print(f"needs {virtiofsd_of(uri, domain.ID())}")
    except libvirt.libvirtError as error:
        gone = error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
        if gone and action in ("destroy", "reason"):
            return _undefined(uri, uuid)
        print(f"libvirt: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _undefined(uri: str, uuid: str) -> int:
    print("the guest's domain is gone from libvirt")
    pid = pid_by_uuid(uri, uuid)
    return 0 if not pid or end_alone(pid, uuid) else 1


def _await(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done():
        time.sleep(0.1)


def act_within(uri: str, uuid: str, action: str) -> int:
    """The same, but a libvirtd that hangs counts as one that is down."""
    from threading import Event, Thread

    codes: list[int] = []
    opened = Event()
    thread = Thread(target=lambda: codes.append(act(uri, uuid, action, opened.set)), daemon=True)
    thread.start()
    seconds = CONNECTS.get(action, CONNECTS_ELSE)
    if opened.wait(seconds):
        seconds = HANGS.get(action, 0)
        thread.join(seconds or None)
        if thread.is_alive() and action == "destroy" and not pid_by_uuid(uri, uuid):
            seconds += STARTS
            _await(lambda: not thread.is_alive() or pid_by_uuid(uri, uuid) > 0, STARTS)
    if thread.is_alive():
        said = f"it does not answer within {seconds:.0f} s"
        return _disconnected(uri, uuid, action, said, hangs=True)
    return codes[0] if codes else 1


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[2] not in ACTIONS:
        print(f"usage: control.py URI UUID {'|'.join(ACTIONS)}", file=sys.stderr)
        return 2
    uri, uuid, action = arguments
    return act_within(uri, uuid, action)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # neither Python's nor libvirt's farewell is needed
