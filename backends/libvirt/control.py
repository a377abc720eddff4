"""Starts, ends and pauses one domain: the program that a shim runs (native/LAUNCH.md, ``guest``).

``python -I control.py URI UUID start|destroy|suspend|resume|reason``.  It is run for every start of
a guest, so it imports nothing but libvirt.  Exit code 0, else one line on standard error.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

#: Where libvirt keeps QEMU's pid files: the system's, a user's session, an older one's.
PID_DIRECTORIES = (
    "/run/libvirt/qemu",
    "{runtime}/libvirt/qemu/run",
    "{home}/.cache/libvirt/qemu/run",
)
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


def pid_of(name: str, uuid: str) -> int:
    """The pid of the QEMU that runs a domain, by its pid file and command line; 0 for none."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    home = os.environ.get("HOME", "/root")
    for directory in PID_DIRECTORIES:
        path = directory.format(runtime=runtime, home=home)
        try:
            with open(f"{path}/{name}.pid", encoding="ascii") as file:
                pid = int(file.read(32))
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                arguments = file.read().split(b"\0")
        except (OSError, ValueError):
            continue
        if uuid.encode() in arguments:
            return pid
    return 0


def start(libvirt: Any, domain: Any) -> None:
    """Start it, afresh: what an earlier monitor left running is ended first."""
    if domain.isActive():
        destroy(libvirt, domain)
    domain.create()
    print(f"pid {pid_of(domain.name(), domain.UUIDString())}")


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
        if state != libvirt.VIR_DOMAIN_RUNNING:
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


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[2] not in ACTIONS:
        print(f"usage: control.py URI UUID {'|'.join(ACTIONS)}", file=sys.stderr)
        return 2
    import libvirt

    uri, uuid, action = arguments
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        connection = libvirt.open(uri)
        try:
            domain = connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            gone = error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN
            if not gone or action not in ("destroy", "reason"):
                raise
            print("the guest's domain is gone from libvirt")
            return 0
        ACTIONS[action](libvirt, domain)
    except libvirt.libvirtError as error:
        print(f"libvirt: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # neither Python's nor libvirt's farewell is needed
