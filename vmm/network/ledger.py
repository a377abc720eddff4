"""Which ports are redirected, kept beside the sockets of a running instance.

``published.json`` in the run directory says what the packet filter's maps must hold, so that
they can be restored whole after somebody flushed them, and a port be taken back of a workload
whose end nobody cleaned up. It is worth nothing after a reboot, and so carries the boot's id.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmm.model.spec import Port
from vmm.network.nft import Published
from vmm.ports.files import atomic_write


class _Book(msgspec.Struct, kw_only=True):
    boot_id: str
    entries: dict[str, Published] = {}


class Ledger:
    """Workload id -> its redirected ports. The caller holds the instance's network lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Published]:
        """What is redirected; nothing when the file is missing, damaged or of another boot."""
        try:
            book = msgspec.json.decode(self._path.read_bytes(), type=_Book)
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}
        return book.entries if book.boot_id == _boot_id() else {}

    def write(self, entries: dict[str, Published]) -> None:
        if entries or self._path.exists():
            book = _Book(boot_id=_boot_id(), entries=entries)
            atomic_write(self._path, msgspec.json.encode(book))


def without_ports(
    entries: dict[str, Published], keys: set[tuple[str, str, int]]
) -> dict[str, Published]:
    """``entries`` less the ports with these keys, and less workloads that have no port left."""
    left = {}
    for workload, one in entries.items():
        ports = tuple(port for port in one.ports if key(port) not in keys)
        if ports:
            left[workload] = Published(target=one.target, ports=ports)
    return left


def key(port: Port) -> tuple[str, str, int]:
    """What no two redirected ports may share."""
    return (port.protocol, port.host_ip, port.host_port)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
