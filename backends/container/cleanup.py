"""Remove what a dead workload left in the cgroup hierarchies, its processes included."""

from __future__ import annotations

import contextlib
import os
import time

from vmm.model.backend import CgroupHierarchy, CompileInput
from vmm.model.errors import HostError

#: Seconds until killed processes must be gone.
PATIENCE = 5.0
_PAUSE = 0.005


def cleanup(given: CompileInput) -> None:
    """Kill and remove in every hierarchy; nothing left is no error. HostError if some stay."""
    left = []
    # The freezer comes first: frozen processes take no signal in the other hierarchies either.
    for hierarchy in sorted(given.host.cgroups, key=lambda h: "freezer" not in h.controllers):
        parent = f"{hierarchy.mountpoint}/{given.cgroup_parent}"
        directory = f"{parent}/{given.spec.id}"
        if not os.path.isdir(directory):
            continue
        _kill(directory, hierarchy)
        if not _remove(directory):
            left.append(directory)
        with contextlib.suppress(OSError):
            os.rmdir(parent)
    if left:
        raise HostError(
            f"workload {given.spec.name}: cgroup {left[0]} cannot be removed",
            "see the processes in its cgroup.procs; then run vmm system check --repair",
        )


def _groups(directory: str) -> list[str]:
    """The group and those below it, deepest first."""
    return [path for path, _, _ in os.walk(directory, topdown=False)]


def _kill(directory: str, hierarchy: CgroupHierarchy) -> None:
    """Kill every process of the group and of those below it, frozen or not."""
    if hierarchy.version == 2 and _put(f"{directory}/cgroup.kill", "1"):
        return
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        groups = _groups(directory)
        alive = [pid for group in groups for pid in _pids(group)]
        for group in groups:
            _kill_members(group)
            if "freezer" in hierarchy.controllers:
                _put(f"{group}/freezer.state", "THAWED")
        if not alive:
            return
        time.sleep(_PAUSE)


def _pids(group: str) -> list[int]:
    try:
        with open(f"{group}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file if int(line)]
    except OSError:
        return []


def _kill_members(group: str) -> None:
    """By pidfd, looked up again once held, so that a reused pid is never hit."""
    from signal import SIGKILL, pidfd_send_signal

    for pid in _pids(group):
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if pid in _pids(group):
                with contextlib.suppress(ProcessLookupError):
                    pidfd_send_signal(descriptor, SIGKILL)
        finally:
            os.close(descriptor)


def _put(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        return False
    return True


def _remove(directory: str) -> bool:
    """rmdir(2) succeeds once the last process was reaped."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for group in _groups(directory):
            with contextlib.suppress(OSError):
                os.rmdir(group)
        if not os.path.isdir(directory):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
