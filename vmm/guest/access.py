"""Letting the hypervisor's user reach what it opens, and nobody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def open_to(gid: int, *directories: Path | str) -> None:
    """Let group ``gid`` pass through directories of ours (0710); changed only if need be."""
    for directory in directories:
        _set(directory, gid, 0o710)


def share_file(gid: int, path: Path | str) -> None:
    """Let group ``gid`` read a file of ours (0640)."""
    _set(path, gid, 0o640)


def _set(path: Path | str, gid: int, mode: int) -> None:
    status = os.stat(path)
    if status.st_gid != gid:
        os.chown(path, -1, gid)
    if stat.S_IMODE(status.st_mode) != mode:
        os.chmod(path, mode)
