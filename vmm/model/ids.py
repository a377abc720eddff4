"""Identity: random 256-bit ids, names, and the names derived from them on a platform."""

from __future__ import annotations

import os
import re

from vmm.model.errors import UsageError

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
HEX64 = re.compile(r"[0-9a-f]{64}\Z")
HEX_PREFIX = re.compile(r"[0-9a-f]{1,64}\Z")
META_KEY = re.compile(r"[a-z0-9][a-z0-9:._/-]{0,199}\Z")


def new_id() -> str:
    """A random 256-bit id in hex."""
    return os.urandom(32).hex()


def short(full: str) -> str:
    """The 12 digits that are shown and that platform names are derived from."""
    return full.removeprefix("sha256:")[:12]


def platform_name(full: str) -> str:
    """Name of the domain, jail, cgroup or dataset of a workload."""
    return "vmm-" + short(full)


def link_name(full: str) -> str:
    """Name of the host's end of a workload's network link (13 characters; IFNAMSIZ is 16)."""
    return "v" + short(full)


def check_name(name: str, kind: str = "name") -> str:
    """Return ``name`` or raise UsageError."""
    if not NAME.match(name):
        raise UsageError(
            f"invalid {kind} {name!r:.80}",
            "use 1 to 128 of [a-zA-Z0-9_.-], the first a letter or digit",
        )
    return name
