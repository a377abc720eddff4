"""The options of a tmpfs mount (tmpfs(5), mount(8)), with Docker's defaults."""

from __future__ import annotations

import re
from typing import NamedTuple

from vmm.model.errors import UsageError
from vmm.model.spec import Mount

_FLAGS = ("ro", "nosuid", "nodev", "noexec", "noatime", "relatime", "strictatime")
_OPPOSITE = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime"}
_IGNORED = frozenset(("defaults", "async"))
_DATA = re.compile(
    r"(size=\d+[kmgKMG%]?|nr_blocks=\d+[kmgKMG]?|nr_inodes=\d+[kmgKMG]?"
    r"|mode=[0-7]{1,4}|uid=\d{1,10}|gid=\d{1,10})\Z"
)


class TmpfsOptions(NamedTuple):
    """What mount(2) takes apart: flags and data, each comma-separated."""

    flags: str
    data: str


def parse(target: str, options: tuple[str, ...], mount: Mount | None = None) -> TmpfsOptions:
    """Docker's nosuid,nodev,noexec and what ``options`` add or take back; UsageError."""
    flags = {"nosuid", "nodev", "noexec"}
    data = {"mode": "mode=1777"}
    for option in options:
        if option in _FLAGS:
            flags.add(option)
        elif option in _OPPOSITE:
            flags.discard(_OPPOSITE[option])
        elif _DATA.match(option):
            data[option.partition("=")[0]] = option
        elif option and option not in _IGNORED:
            raise UsageError(
                f"--tmpfs {target}: unknown option {option!r}",
                "known: size, mode, uid, gid, nr_inodes, nr_blocks, " + ", ".join(_FLAGS),
            )
    if mount and mount.size is not None:
        data["size"] = f"size={mount.size}"
    if mount and mount.mode is not None:
        data["mode"] = f"mode={mount.mode:o}"
    if mount and mount.read_only:
        flags.add("ro")
    return TmpfsOptions(",".join(f for f in _FLAGS if f in flags), ",".join(data.values()))
