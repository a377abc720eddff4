"""Finds the foreign rule that drops a bridge's traffic; nothing foreign is ever changed.

Packets of a workload must pass every table's forward chain, so a host whose firewall forwards
nothing cuts workloads off in silence. The rules are followed as far as their meaning for
our packets is plain; a condition that is not (a mark, a set, an extension of iptables) is
taken as not met.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.model.errors import HostError
from vmm.model.network import NetworkRecord
from vmm.network.subnets import number, parse

if TYPE_CHECKING:
    from vmm.ports.runner import Runner

Json = dict[str, Any]

_DEPTH = 16
_FINAL = ("accept", "drop", "reject", "return")
#: Statements that decide nothing.
_PASSING = ("counter", "log", "comment", "mangle", "notrack")


class Packet(NamedTuple):
    """A forwarded packet; an empty interface is any that is not ours."""

    iifname: str
    oifname: str
    state: str
    source: str
    what: str


class Ruleset:
    """What ``nft -j list ruleset`` lists, arranged for following."""

    def __init__(self, objects: Iterable[Json]) -> None:
        self.chains: list[Json] = []
        self._rules: dict[tuple[str, str, str], list[Json]] = {}
        for one in objects:
            if "chain" in one:
                self.chains.append(one["chain"])
            elif "rule" in one:
                rule = one["rule"]
                where = (rule["family"], rule["table"], rule["chain"])
                self._rules.setdefault(where, []).append(rule)

    def verdict(self, chain: Json, packet: Packet) -> str:
        """``accept`` or ``drop``: what a base chain says of ``packet``."""
        where = (chain["family"], chain["table"], chain["name"])
        said = self._follow(where, packet, _DEPTH)
        if said in ("drop", "reject"):
            return "drop"
        return "accept" if said == "accept" else str(chain.get("policy", "accept"))

    def _follow(self, where: tuple[str, str, str], packet: Packet, depth: int) -> str:
        """The chain's verdict, "" when it has none."""
        for rule in self._rules.get(where, ()) if depth else ():
            name, target = _statement(rule.get("expr", ()), packet)
            if name in ("jump", "goto"):
                said = self._follow((*where[:2], target), packet, depth - 1)
                if said or name == "goto":
                    return said
            elif name == "return":
                return ""
            elif name:
                return name
        return ""


def find_blocking(objects: Iterable[Json], own: str, record: NetworkRecord) -> str | None:
    """A foreign chain that drops what goes out of, or is published on, the bridge; and the cure."""
    ruleset = Ruleset(objects)
    for chain in ruleset.chains:
        foreign = chain["table"] != own
        if foreign and chain.get("hook") == "forward" and chain["family"] in ("ip", "inet"):
            for packet in _packets(record):
                if ruleset.verdict(chain, packet) == "drop":
                    return _advice(chain, packet, record.bridge)
    return None


def find_legacy_blocking(bridge: str, runner: Runner) -> str | None:
    """The same for rules of iptables-legacy, which nft(8) does not list."""
    try:
        tables = Path("/proc/net/ip_tables_names").read_text().split()
        if "filter" not in tables:
            return None
        rules = runner.run(("iptables-legacy", "-S", "FORWARD")).decode(errors="replace")
    except (OSError, HostError):
        return None
    if "-P FORWARD DROP" not in rules or f"-A FORWARD -i {bridge} -j ACCEPT" in rules:
        return None
    return (
        f"the policy of iptables-legacy's chain FORWARD drops the traffic of {bridge}; "
        f"allow it: {_iptables('iptables-legacy', 'FORWARD', bridge)}"
    )


def _packets(record: NetworkRecord) -> Iterator[Packet]:
    source = record.gateway
    yield Packet(record.bridge, "", "new", source, "what workloads send out")
    yield Packet("", record.bridge, "established", "", "the answers workloads get")
    yield Packet("", record.bridge, "new", "", "connections to published ports")


def _advice(chain: Json, packet: Packet, bridge: str) -> str:
    family, table, name = chain["family"], chain["table"], chain["name"]
    if table == "firewalld":
        cure = (
            f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && "
            "firewall-cmd --reload"
        )
    elif (family, table, name) == ("ip", "filter", "FORWARD"):
        cure = _iptables("iptables", "FORWARD", bridge)
    else:
        cure = " && ".join(
            f"nft insert rule {family} {table} {name} {side} {bridge} accept"
            for side in ("iifname", "oifname")
        )
    return (
        f"the chain {name} of table {family} {table} drops {packet.what} (bridge {bridge}); "
        f"allow it: {cure}"
    )


def _iptables(program: str, chain: str, bridge: str) -> str:
    sides = ("-i", "-o")
    return " && ".join(f"{program} -I {chain} {side} {bridge} -j ACCEPT" for side in sides)


def _statement(expression: Sequence[Json], packet: Packet) -> tuple[str, str]:
    """The verdict of one rule for ``packet`` and its target; "" when it has none or is not met."""
    for statement in expression:
        name, body = next(iter(statement.items()))
        if name == "match":
            if not _is_met(body, packet):
                return "", ""
        elif name in _FINAL:
            return name, ""
        elif name in ("jump", "goto"):
            return name, body["target"]
        elif name == "vmap":
            return _look_up(body, packet)
        elif name not in _PASSING:
            return "", ""
    return "", ""


def _look_up(vmap: Json, packet: Packet) -> tuple[str, str]:
    """A verdict map written in place, ``ct state vmap { established : accept, … }``."""
    known = _known(vmap["key"], packet)
    pairs = vmap["data"]["set"] if isinstance(vmap["data"], dict) else ()
    for key, verdict in pairs:
        if known is not None and _is_same(known, key):
            return _statement([verdict], packet)
    return "", ""


def _is_met(match: Json, packet: Packet) -> bool:
    """Whether a condition is surely met."""
    known = _known(match["left"], packet)
    if known is None:
        return False
    if match["op"] != "!=":
        return _is_same(known, match["right"])
    if not known:  # some other interface: surely unlike ours, perhaps like the one named
        return match["right"] in (packet.iifname, packet.oifname)
    return not _is_same(known, match["right"])


def _known(left: Any, packet: Packet) -> str | None:
    """What a selector gives for ``packet``; None when that is not known."""
    if not isinstance(left, dict):
        return None
    key = left.get("meta", {}).get("key")
    if key in ("iifname", "iif"):
        return packet.iifname
    if key in ("oifname", "oif"):
        return packet.oifname
    if key == "nfproto":
        return "ipv4"
    if left.get("ct", {}).get("key") == "state":
        return packet.state
    if left.get("payload") == {"protocol": "ip", "field": "saddr"}:
        return packet.source or None
    return None


def _is_same(known: str, right: Any) -> bool:
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, list):
        return any(_is_same(known, one) for one in right)
    if isinstance(right, dict) and "prefix" in right and known[:1].isdigit():
        prefix = right["prefix"]
        return ":" not in prefix["addr"] and number(known) in parse(
            f"{prefix['addr']}/{prefix['len']}"
        )
    return isinstance(right, str) and bool(known) and fnmatch.fnmatchcase(known, right)
