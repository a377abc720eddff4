"""Workloads on disk: ``workloads/<id>/workload.json`` and ``state.json``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from vmm.model.errors import CorruptStore
from vmm.model.ids import HEX64, short
from vmm.model.spec import SCHEMA, WorkloadSpec
from vmm.model.state import HEALTH_LOG, Probe, State
from vmm.ports.files import atomic_write

SPEC = "workload.json"
STATE = "state.json"


class WorkloadStore:
    """Reads and writes the documents that define a workload."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, workload: str) -> Path:
        return self.directory / workload

    def ids(self) -> list[str]:
        """Every workload directory, complete or not."""
        with os.scandir(self.directory) as entries:
            return sorted(e.name for e in entries if HEX64.match(e.name))

    def registered(self, workload: str) -> bool:
        return (self.path(workload) / SPEC).exists()

    def write(self, spec: WorkloadSpec) -> None:
        """Register the workload, or change its spec, in one rename."""
        text = msgspec.json.format(msgspec.json.encode(spec), indent=1)
        atomic_write(self.path(spec.id) / SPEC, text + b"\n")

    def read(self, workload: str) -> WorkloadSpec:
        """The spec; CorruptStore when it is damaged or of an unknown newer schema."""
        path = self.path(workload) / SPEC
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            message = f"No such container: {short(workload)} (it has no {SPEC})"
            raise CorruptStore(message, "vmm ps -a lists what there is") from None
        try:
            schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema", SCHEMA)
            if isinstance(schema, int) and schema > SCHEMA:
                raise CorruptStore(
                    f"{path}: schema {schema} is newer than this vmm knows ({SCHEMA})",
                    "upgrade vmm",
                )
            spec = msgspec.json.decode(data, type=WorkloadSpec)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CorruptStore(f"{path}: {error}", _hint(workload)) from None
        if spec.id != workload:
            raise CorruptStore(f"{path}: is of workload {spec.id[:64]!r}", _hint(workload))
        return spec

    def state(self, workload: str) -> State:
        """What the shim wrote last; ``created`` when it never ran."""
        try:
            data = (self.path(workload) / STATE).read_bytes()
        except FileNotFoundError:
            return State()
        try:
            return msgspec.json.decode(data, type=State)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            path = self.path(workload) / STATE
            raise CorruptStore(f"{path}: {error}", "vmm system check --repair") from None

    def probes(self, workload: str) -> tuple[Probe, ...]:
        """What the last health probes found, the oldest first; damaged lines are left out."""
        try:
            lines = (self.path(workload) / HEALTH_LOG).read_bytes().splitlines()
        except FileNotFoundError:
            return ()
        found = []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                found.append(msgspec.json.decode(line, type=Probe))
        return tuple(found)

    def write_state(self, workload: str, state: State) -> None:
        """Correct the state of a workload whose shim is gone."""
        atomic_write(self.path(workload) / STATE, msgspec.json.encode(state) + b"\n")

    def delete(self, workload: str, remove_tree: Callable[[str], object]) -> None:
        """Remove the directory: unregistered first, then its content by ``remove_tree``, which
        must bear whatever tree a workload may have made."""
        path = self.path(workload)
        if path.is_dir():
            (path / SPEC).unlink(missing_ok=True)
            remove_tree(os.fspath(path))


def _hint(workload: str) -> str:
    return f"restore the file, or remove the workload: vmm rm -f {short(workload)}"
