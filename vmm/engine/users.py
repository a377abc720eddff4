"""Users and groups of an image, read as data from its own files (never through NSS)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from vmm.model.backend import User
from vmm.model.errors import LaunchError
from vmm.ports.kernel import openat2

#: A passwd or group file is read up to here (bytes); a larger one is refused.
LIMIT = 1 << 20
MAX_ID = 2**31 - 1

#: Gives the text of a file by its path in the root ("etc/passwd"); "" when it is missing.
Reader = Callable[[str], str]


def resolve_user(read: Reader, text: str) -> User:
    """``user[:group]`` by name or number, by the files of a root that ``read`` gives.

    As Docker does: a numeric user need not exist; a name must.  Without a group, the user's
    primary and supplementary groups hold.
    """
    wanted, _, group = text.partition(":")
    passwd = [line for line in _lines(read("etc/passwd")) if len(line) >= 7]
    entry = _entry(passwd, wanted or "0")
    if entry is not None:
        uid, gid, home = int(entry[2]), int(entry[3]), entry[5] or "/"
    elif _numeric(wanted or "0"):
        uid, gid, home = int(wanted or 0), 0, "/"
    else:
        raise LaunchError(
            f"unable to find user {wanted}: no matching entries in passwd file",
            hint="use a number, or a user that the image has",
        )
    groups = [line for line in _lines(read("etc/group")) if len(line) >= 4]
    if group:
        return User(uid=uid, gid=_gid(groups, group), home=home)
    name = entry[0] if entry else ""
    extra = (int(g[2]) for g in groups if name and name in g[3].split(",") and _numeric(g[2]))
    return User(uid=uid, gid=gid, groups=tuple(sorted({*extra} - {gid})), home=home)


def _entry(passwd: list[list[str]], wanted: str) -> list[str] | None:
    valid = [line for line in passwd if _numeric(line[2]) and _numeric(line[3])]
    by_name = [line for line in valid if line[0] == wanted]
    by_number = [line for line in valid if _numeric(wanted) and int(line[2]) == int(wanted)]
    return next(iter(by_name or by_number), None)


def _gid(groups: list[list[str]], wanted: str) -> int:
    for line in groups:
        if line[0] == wanted and _numeric(line[2]):
            return int(line[2])
    if _numeric(wanted):
        return int(wanted)
    raise LaunchError(
        f"unable to find group {wanted}: no matching entries in group file",
        hint="use a number, or a group that the image has",
    )


def _numeric(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def _lines(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines()]


def inside(root: int) -> Reader:
    """Reads in the root directory ``root`` (a descriptor), which stays the caller's."""
    return lambda path: read_inside(root, path)


def read_inside(root: int, path: str, limit: int = LIMIT) -> str:
    """A regular file below ``root``, "" when it is missing or anything else than a file.

    What it is is known before it is opened: to open a device node already acts on the host's
    device, and the files of procfs (of size 0) may wait or act when read.
    """
    try:
        place = openat2(root, path, os.O_PATH)
    except OSError:
        return ""
    try:
        status = os.fstat(place)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return ""
        if status.st_size > limit:
            raise LaunchError(f"/{path} of the image is larger than {limit} bytes")
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    finally:
        os.close(place)
