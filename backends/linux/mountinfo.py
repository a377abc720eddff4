"""Pure readers of /proc texts: proc_pid_mountinfo(5), proc_pid_cgroup(5), proc_pid_limits(5)."""

from __future__ import annotations

import posixpath
import re
from typing import NamedTuple

from vmm.model.backend import CgroupHierarchy

CONTROLLERS = frozenset(
    [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    ]
)
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """One line of mountinfo, its octal escapes undone."""

    root: str
    mountpoint: str
    options: tuple[str, ...]
    type: str
    super_options: tuple[str, ...]


def unescape(text: str) -> str:
    r"""Undo the octal escapes (``\040`` is a space)."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> list[MountInfo]:
    """The mounts in order; later ones hide earlier ones at the same place."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        mounts.append(
            MountInfo(
                root=unescape(fields[3]),
                mountpoint=unescape(fields[4]),
                options=tuple(fields[5].split(",")),
                type=tail[0],
                super_options=tuple(tail[2].split(",")),
            )
        )
    return mounts


def parse_cgroup(text: str) -> dict[tuple[str, ...], str]:
    """This process's cgroup by controllers; the key of cgroup2 is ``()``."""
    own = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number.isdigit() and path.startswith("/"):
            own[tuple(sorted(filter(None, names.split(","))))] = path
    return own


def hierarchies(
    mountinfo: str, cgroup: str, unified_controllers: dict[str, str]
) -> tuple[CgroupHierarchy, ...]:
    """The writable cgroup mounts, each once.

    ``unified_controllers`` has the text of ``cgroup.controllers`` by mount point of a cgroup2.
    """
    own = parse_cgroup(cgroup)
    found: dict[tuple[int, tuple[str, ...]], CgroupHierarchy] = {}
    for mount in parse_mountinfo(mountinfo):
        if mount.type == "cgroup2":
            controllers: tuple[str, ...] = ()
            shown = tuple(unified_controllers.get(mount.mountpoint, "").split())
            version = 2
        elif mount.type == "cgroup":
            shown = controllers = _v1_controllers(mount.super_options)
            version = 1
        else:
            continue
        if "ro" in mount.options or (version, controllers) in found:
            continue
        path = own.get(tuple(sorted(controllers)), "/")
        found[version, controllers] = CgroupHierarchy(
            version=version,
            controllers=shown,
            mountpoint=mount.mountpoint,
            own=_relative(path, mount.root),
        )
    return tuple(found.values())


def _v1_controllers(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(o for o in options if o in CONTROLLERS or o.startswith("name="))


def _relative(path: str, root: str) -> str:
    """``path`` as seen from a mount of the hierarchy's directory ``root``."""
    if root in ("/", path):
        return path if root == "/" else "/"
    return posixpath.normpath(path.removeprefix(root)) if path.startswith(root + "/") else "/"


def parse_limits(text: str) -> dict[str, int]:
    """Hard limits by setrlimit(2) name; -1 is unlimited."""
    limits = {}
    for line in text.splitlines():
        for title, name in LIMIT_TITLES.items():
            if line.startswith(title + " "):
                hard = line[len(title) :].split()[1]
                limits[name] = -1 if hard == "unlimited" else int(hard)
    return limits


LIMIT_TITLES = {
    "Max cpu time": "cpu",
    "Max file size": "fsize",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "rss",
    "Max processes": "nproc",
    "Max open files": "nofile",
    "Max locked memory": "memlock",
    "Max address space": "as",
    "Max file locks": "locks",
    "Max pending signals": "sigpending",
    "Max msgqueue size": "msgqueue",
    "Max nice priority": "nice",
    "Max realtime priority": "rtprio",
    "Max realtime timeout": "rttime",
}


def parse_status_mask(text: str, field: str) -> int:
    """A capability mask of proc_pid_status(5), such as ``CapBnd``; 0 if it is not there."""
    match = re.search(rf"^{field}:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return int(match[1], 16) if match else 0


def parse_cpu_list(text: str) -> set[int]:
    """The numbers of "0-2,5" (cpuset(7), "List format"); ValueError if it is none."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(text)
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > 1 << 16:
            raise ValueError(text)
        numbers.update(range(low, high + 1))
    return numbers
