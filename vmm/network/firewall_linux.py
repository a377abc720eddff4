"""Carries the table's documents to the kernel: nft(8), one JSON transaction each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from vmm.model.errors import HostError
from vmm.model.network import NetworkRecord
from vmm.network import nft
from vmm.network.netlink_linux import count_rules
from vmm.network.nft import Published

if TYPE_CHECKING:
    from vmm.ports.runner import Runner

_NFT = ("nft", "-j", "-f", "-")
_CHECK = ("nft", "-c", "-j", "-f", "-")


class Firewall:
    """The table of one instance in this network namespace."""

    def __init__(self, name: str, runner: Runner) -> None:
        self.table = nft.Table(name)
        self._runner = runner

    def is_intact(self, networks: Sequence[NetworkRecord]) -> bool:
        """Whether the table is there with all its rules; asks the kernel directly (0.1 ms).

        Administrators' ``flush ruleset``, as in Debian's nftables.conf, removes it.
        """
        try:
            return count_rules(self.table.name) == nft.count_rules(networks)
        except OSError:
            return False

    def rebuild(self, networks: Sequence[NetworkRecord], published: Iterable[Published]) -> None:
        self._apply(self.table.rebuild(networks, published))

    def change(self, removed: Iterable[Published], added: Iterable[Published]) -> None:
        """HostError when the kernel's elements are not what they were taken for."""
        document = self.table.change(removed, added)
        if document["nftables"]:
            self._apply(document)

    def remove(self) -> None:
        """Remove the table, if it is there."""
        self._apply(self.table.remove())

    def refusal(self) -> str:
        """Why the kernel or nft(8) refuses such a table, "" if it does not; nothing is changed.

        ``nft -c`` has the kernel judge the transaction and then abandon it.
        """
        example = NetworkRecord(
            id="", name="", driver="bridge", bridge="vmm-probe", subnets=("192.0.2.0/24",)
        )
        document = nft.Table("vmm-probe").rebuild([example], [])
        try:
            self._runner.run(_CHECK, stdin=msgspec.json.encode(document), timeout=20)
        except HostError as error:
            return error.message
        return ""

    def ruleset(self) -> list[dict[str, Any]]:
        """Everybody's tables, as nft's JSON lists them."""
        listed = self._runner.run(("nft", "-j", "list", "ruleset"), timeout=20)
        objects: list[dict[str, Any]] = msgspec.json.decode(listed)["nftables"]
        return objects

    def _apply(self, document: dict[str, Any]) -> None:
        self._runner.run(_NFT, stdin=msgspec.json.encode(document), timeout=20)
