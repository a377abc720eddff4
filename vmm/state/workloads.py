"""Workloads on disk: ``workloads/<id>/workload.json`` and ``state.json``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from vmm.model.errors import CorruptStore
from vmm.model.ids import HEX64
from vmm.model.spec import SCHEMA, WorkloadSpec
from vmm.model.state import State
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
            raise CorruptStore(f"{path} is missing", "vmm system check --repair") from None
        try:
            schema = msgspec.json.decode(data, type=dict[str, Any]).get("schema", SCHEMA)
            if isinstance(schema, int) and schema > SCHEMA:
                raise CorruptStore(
                    f"{path}: schema {schema} is newer than this vmm knows ({SCHEMA})",
                    "upgrade vmm",
                )
            return msgspec.json.decode(data, type=WorkloadSpec)
        except msgspec.MsgspecError as error:
            hint = "restore the file, or remove the workload: vmm rm -f"
            raise CorruptStore(f"{path}: {error}", hint) from None

    def state(self, workload: str) -> State:
        """What the shim wrote last; ``created`` when it never ran."""
        try:
            data = (self.path(workload) / STATE).read_bytes()
        except FileNotFoundError:
            return State()
        try:
            return msgspec.json.decode(data, type=State)
        except msgspec.MsgspecError as error:
            path = self.path(workload) / STATE
            raise CorruptStore(f"{path}: {error}", "vmm system check --repair") from None

    def write_state(self, workload: str, state: State) -> None:
        """Correct the state of a workload whose shim is gone."""
        atomic_write(self.path(workload) / STATE, msgspec.json.encode(state) + b"\n")

    def delete(self, workload: str) -> None:
        """Remove the directory: unregistered first, then its content."""
        path = self.path(workload)
        (path / SPEC).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            shutil.rmtree(path)
