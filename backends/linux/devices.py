"""Device nodes: those every workload has, those passed in, and who may use which."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from vmm.model.backend import ResolvedDevice
from vmm.model.errors import UsageError
from vmm.model.spec import Device, WorkloadSpec

#: Made in every /dev (runtime-spec, config-linux.md, "Default Devices").
STANDARD = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)


class Rule(NamedTuple):
    """A line of devices.allow (admin-guide/cgroup-v1/devices.rst); -1 is any number."""

    type: str
    major: int
    minor: int
    permissions: str

    def __str__(self) -> str:
        major, minor = ("*" if n < 0 else str(n) for n in (self.major, self.minor))
        return f"{self.type} {major}:{minor} {self.permissions}"


#: Docker's: any node may be made, but only these be opened.
DEFAULT_RULES = (
    Rule("c", -1, -1, "m"),
    Rule("b", -1, -1, "m"),
    *(Rule("c", major, minor, "rwm") for _, major, minor in STANDARD),
    Rule("c", 5, 1, "rwm"),
    Rule("c", 5, 2, "rwm"),
    Rule("c", 136, -1, "rwm"),
)


def rules(devices: Iterable[ResolvedDevice]) -> tuple[Rule, ...]:
    """The allow-list of a workload with these devices passed in."""
    given = (Rule(d.type, d.major, d.minor, d.permissions) for d in devices)
    return (*DEFAULT_RULES, *given)


def resolve(device: Device) -> tuple[ResolvedDevice, ...]:
    """The node behind a ``--device``; every node below it if it is a directory."""
    host = os.path.realpath(device.host_path)
    try:
        info = os.stat(host)
    except OSError as error:
        raise UsageError(
            f"--device {device.host_path}: {error.strerror}", "name a device node of the host"
        ) from None
    if stat.S_ISDIR(info.st_mode):
        found = _below(host, device.path, device.permissions)
    else:
        found = [n for n in [_node(info, device.path, device.permissions)] if n]
    if not found:
        raise UsageError(
            f"--device {device.host_path}: not a device node",
            "name a character or block device, or a directory of them",
        )
    return tuple(found)


def of_workload(spec: WorkloadSpec) -> tuple[ResolvedDevice, ...]:
    """The nodes passed in."""
    return tuple(node for device in spec.resources.devices for node in resolve(device))


def _node(info: os.stat_result, path: str, permissions: str) -> ResolvedDevice | None:
    mode = info.st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        return None
    return ResolvedDevice(
        path=path,
        type="c" if stat.S_ISCHR(mode) else "b",
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        mode=stat.S_IMODE(mode),
        uid=info.st_uid,
        gid=info.st_gid,
        permissions=permissions,
    )


#: Below /dev, but of the workload's own.
OWN = ("pts", "shm", "mqueue", "console", "ptmx")
#: The beginnings of names that a privileged workload does not get: a guest's channel to its shim.
KEPT_BACK = (*OWN, "vport")


def _below(host: str, inside: str, permissions: str) -> list[ResolvedDevice]:
    found: list[ResolvedDevice] = []
    for entry in sorted(os.scandir(host), key=lambda entry: entry.name):
        if host == "/dev" and entry.name in OWN:
            continue
        path = f"{inside}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            found += _below(entry.path, path, permissions)
            continue
        try:
            node = _node(entry.stat(follow_symlinks=False), path, permissions)
        except FileNotFoundError:
            continue
        if node:
            found.append(node)
    return found
