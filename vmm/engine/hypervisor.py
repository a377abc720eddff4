"""libvirt's daemons on a host without a service manager: start, stop, look."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from vmm.model.errors import Conflict, HostError, UsageError
from vmm.ports.runner import HostRunner

#: The URIs of the system's daemon: root has no other session (virConnectOpen's drivers let every
#: connection of root's go there).
OWN = ("qemu:///system", "qemu:///session")
#: virtlogd keeps the output of QEMU, so it comes first (virtlogd(8), libvirtd(8)).
DAEMONS = ("virtlogd", "libvirtd")
#: Where the daemon of the system listens: libvirtd, or the one of the modular daemons for QEMU.
SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
#: The first start asks every emulator what it can do, which takes long (seconds).
READY = 60.0
#: systemd's own sign that it runs (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
_UDEV = Path("/run/udev/control")
KVM = Path("/dev/kvm")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def status(uri: str) -> tuple[list[str], bool]:
    """A line for each daemon and one for the connection, and whether that answers."""
    lines = [f"{name}: {_shown(_pid(name))}" for name in DAEMONS if uri in OWN]
    answers = _answers(uri)
    return [*lines, f"{uri}: {'answers' if answers else 'does not answer'}"], answers


def _require_own(uri: str, verb: str) -> None:
    """UsageError for a libvirt that is another user's, or another host's."""
    if uri not in OWN:
        raise UsageError(
            f"{uri}: that libvirt is not the system's, and not vmm's to {verb}",
            f"{verb} its libvirtd as the user whose it is; or set libvirt_uri: {OWN[0]}",
        )


def _shown(pid: int) -> str:
    return f"runs (pid {pid})" if pid else "does not run"


def start(uri: str) -> list[str]:
    """Start what is missing and wait until ``uri`` answers; what was done."""
    _require_own(uri, "start")
    if _answers(uri):
        return []
    if _BOOTED.is_dir():
        raise Conflict("systemd runs the services here", "systemctl start libvirtd")
    started = _open_kvm()
    for name in DAEMONS:
        if not _pid(name):
            HostRunner().run([_program(name), "-d"], timeout=READY)
            started.append(name)
    end = time.monotonic() + READY
    while not _answers(uri):
        if time.monotonic() > end:
            raise HostError(f"libvirtd did not answer within {READY:.0f} s", "see /var/log/libvirt")
        time.sleep(0.1)
    return started


def _open_kvm() -> list[str]:
    """Where no udev runs, /dev/kvm is root's alone. QEMU's user then cannot look at it, and
    libvirt asks QEMU anew what it can do at every call, which takes it many seconds: so it gets
    the group and mode of udev's own rules (50-udev-default.rules)."""
    import grp

    try:
        status, group = KVM.stat(), grp.getgrnam("kvm").gr_gid
    except (OSError, KeyError):
        return []
    if _UDEV.exists() or status.st_gid == group or status.st_mode & 0o077:
        return []
    os.chown(KVM, -1, group)
    KVM.chmod(0o660)
    return [f"{KVM}: group kvm, mode 0660, as udev sets them"]


def stop(uri: str) -> list[str]:
    """End the daemons, the last one first; guests run on. The names of what was ended."""
    _require_own(uri, "stop")
    if _BOOTED.is_dir():
        raise Conflict("systemd runs the services here", "systemctl stop libvirtd virtlogd")
    ended = []
    for name in reversed(DAEMONS):
        pid = _pid(name)
        if pid:
            _end(name, pid)
            ended.append(name)
    return ended


def _end(name: str, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while _pid(name) == pid:
        if time.monotonic() > end:
            raise HostError(f"{name} (pid {pid}) did not end", f"kill -9 {pid}")
        time.sleep(0.02)


def _program(name: str) -> str:
    import shutil

    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if not path:
        raise HostError(
            f"{name} is not installed", "apt install libvirt-daemon-system libvirt-clients"
        )
    return path


def _pid(name: str) -> int:
    """The daemon's pid by its pid file, 0 when it does not run."""
    try:
        pid = int(Path(f"/run/{name}.pid").read_text())
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return 0
    return pid if command == name else 0


def _answers(uri: str) -> bool:
    """Whether a connection succeeds."""
    from vmm.backends.libvirt.port import HostLibvirt

    if uri in OWN and not any(socket.exists() for socket in SOCKETS):
        return False
    return HostLibvirt(uri).answers()
