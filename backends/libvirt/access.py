"""QEMU runs as a user of its own: it must reach what it opens, and nobody else need."""

from __future__ import annotations

import os
from collections.abc import Iterable

from vmm.backends.libvirt import naming, tap
from vmm.backends.libvirt.domain import hypervisor_of
from vmm.model.backend import CompileInput
from vmm.model.errors import HostError

_SEARCH, _READ, _WRITE = 1, 4, 2


def prepare(given: CompileInput) -> None:
    """Let QEMU's group search the run directories; HostError naming what else keeps it out."""
    hypervisor = hypervisor_of(given)
    if hypervisor.uid != os.geteuid() == 0:
        for directory in (os.path.dirname(given.paths.run), given.paths.run):
            _open_to(directory, hypervisor.gid)
    channel = naming.channel(given.paths.run)
    for path in ancestors((*opened(given), channel)):
        _require(path, hypervisor.uid, hypervisor.gid, _SEARCH, "search")
    for path in (given.root.path, given.root.kernel, given.root.initrd):
        _require(path, hypervisor.uid, hypervisor.gid, _READ, "read")
    _require(given.root.disk, hypervisor.uid, hypervisor.gid, _READ | _WRITE, "write")
    if hypervisor.session and given.endpoint:
        _require(tap.DEVICE, hypervisor.uid, hypervisor.gid, _READ | _WRITE, "use")


def opened(given: CompileInput) -> tuple[str, ...]:
    """The files that QEMU opens."""
    return given.root.path, given.root.disk, given.root.kernel, given.root.initrd


def _open_to(directory: str, gid: int) -> None:
    os.chown(directory, -1, gid)
    os.chmod(directory, 0o710)


def ancestors(paths: Iterable[str]) -> list[str]:
    """Every directory above the paths, each once, from the top."""
    found: set[str] = set()
    for path in paths:
        parent = os.path.dirname(path)
        while parent not in found:
            found.add(parent)
            parent = os.path.dirname(parent)
    return sorted(found)


def _require(path: str, uid: int, gid: int, bits: int, verb: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", "vmm system check --repair") from None
    if not permits(status, uid, gid, bits):
        who = f"user {uid}, group {gid}"
        raise HostError(
            f"{path}: QEMU ({who}) may not {verb} it (mode {status.st_mode & 0o7777:04o}, "
            f"owner {status.st_uid}:{status.st_gid})",
            _mend(path, gid, verb),
        )


def _mend(path: str, gid: int, verb: str) -> str:
    if verb == "use":
        return f"chmod 0666 {path}, as udev sets it; or use --network none"
    right = {"search": "g+x", "read": "g+r", "write": "u+rw"}[verb]
    return f"chgrp {gid} {path} && chmod {right} {path}; or give --root another place"


def permits(status: os.stat_result, uid: int, gid: int, bits: int) -> bool:
    """What the kernel would say to a user in one group alone (path_resolution(7))."""
    if uid == 0:
        return True
    if status.st_uid == uid:
        given = status.st_mode >> 6
    elif status.st_gid == gid:
        given = status.st_mode >> 3
    else:
        given = status.st_mode
    return given & bits == bits
