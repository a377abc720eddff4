"""What the network service needs of whoever keeps the instance's claims."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Claims(Protocol):
    """Who has which address; each call is one transaction."""

    def claim_address(self, network_id: str, workload_id: str, candidates: Iterable[str]) -> str:
        """Give the workload the first candidate nobody has, and return it.

        A workload that already has one of the candidates on this network keeps it. Conflict
        when every candidate is taken.
        """
        ...

    def release(self, workload_id: str) -> None:
        """Give up the workload's addresses on all networks; none is no error."""
        ...

    def addresses(self, network_id: str) -> dict[str, str]:
        """Claimed address -> workload id."""
        ...
