"""Networks as files: ``<root>/networks/<id>.json``, one each, never half written."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmm.model.errors import CorruptStore, NotFound, UsageError
from vmm.model.ids import HEX_PREFIX, new_id
from vmm.model.network import NetworkRecord
from vmm.ports.files import atomic_write

#: The networks every instance has: name and driver.
PREDEFINED = (("bridge", "bridge"), ("host", "host"), ("none", "null"))


class NetworkRecords:
    """The networks of one instance. Whoever saves holds the instance's network lock."""

    def __init__(self, directory: Path, bridge: str) -> None:
        self._directory = directory
        self._bridge = bridge

    def load(self) -> list[NetworkRecord]:
        """All networks by name."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        found = [self._read(self._directory / n) for n in names if n.endswith(".json")]
        return sorted(found, key=lambda record: record.name)

    def complete(self) -> list[NetworkRecord]:
        """All networks, the predefined ones made if they are missing."""
        records = self.load()
        known = {record.name for record in records}
        for name, driver in PREDEFINED:
            if name not in known:
                bridge = self._bridge if driver == "bridge" else ""
                record = NetworkRecord(
                    id=new_id(), name=name, driver=driver, bridge=bridge, created=time.time_ns()
                )
                self.save(record)
                records.append(record)
        return sorted(records, key=lambda record: record.name)

    def save(self, record: NetworkRecord) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        atomic_write(self._directory / f"{record.id}.json", msgspec.json.encode(record))

    def _read(self, path: Path) -> NetworkRecord:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=NetworkRecord)
        except msgspec.MsgspecError as error:
            raise CorruptStore(
                f"{path}: {error}", "restore the file, or remove it to have the network made anew"
            ) from None
        if f"{record.id}.json" != path.name:
            raise CorruptStore(f"{path}: holds the network {record.id[:64]!r}", "remove the file")
        return record


def is_complete(records: Sequence[NetworkRecord]) -> bool:
    """Whether every predefined network is there."""
    return {name for name, _ in PREDEFINED} <= {record.name for record in records}


def find(records: Sequence[NetworkRecord], name: str) -> NetworkRecord:
    """The network of this id, name or unique prefix of an id."""
    for record in records:
        if name in (record.id, record.name):
            return record
    matches = [r for r in records if HEX_PREFIX.match(name) and r.id.startswith(name)]
    if len(matches) > 1:
        raise UsageError(
            f"the id {name} is ambiguous: " + ", ".join(r.id[:12] for r in matches),
            "give more digits",
        )
    if not matches:
        names = ", ".join(r.name for r in records)
        raise NotFound("network", f"{name:.128}", f"there are: {names}")
    return matches[0]
