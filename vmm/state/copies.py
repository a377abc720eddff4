"""Second copies of specs, for workloads whose definition a platform keeps too.

A platform shows what it keeps to others (any local user may ask libvirt's read-only socket), so
that it gets the public part alone (``vmm.model.spec.public``). The whole lies here, for root only,
and apart from the workload's own documents: what loses those leaves this.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from vmm.model.ids import HEX64
from vmm.model.spec import SCHEMA, WorkloadSpec
from vmm.ports.files import atomic_write


class SpecCopies:
    """One file per workload, mode 0600 in a directory of mode 0700."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, spec: WorkloadSpec) -> None:
        """Keep this spec; nothing is written when it is kept already."""
        if self.read(spec.id) != spec:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(self._path(spec.id), msgspec.json.encode(spec) + b"\n")

    def read(self, workload: str) -> WorkloadSpec | None:
        """The spec as it was kept last; None for none, and for what cannot be understood."""
        try:
            spec = msgspec.json.decode(self._path(workload).read_bytes(), type=WorkloadSpec)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return spec if spec.id == workload and spec.schema <= SCHEMA else None

    def remove(self, workload: str) -> None:
        """Keep it no longer; nothing if it is not kept."""
        self._path(workload).unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """The workloads of which there is a copy."""
        with contextlib.suppress(FileNotFoundError):
            names = (name.removesuffix(".json") for name in os.listdir(self.directory))
            return sorted(name for name in names if HEX64.match(name))
        return []

    def _path(self, workload: str) -> Path:
        return self.directory / f"{workload}.json"
