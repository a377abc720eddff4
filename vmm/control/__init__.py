"""The client of a workload's shim (native/PROTOCOL.md): one import for its users, loaded lazily."""

from __future__ import annotations

from vmm.control.client import Control, Exit
from vmm.control.spawn import spawn_shim

__all__ = ["Control", "Exit", "spawn_shim"]
