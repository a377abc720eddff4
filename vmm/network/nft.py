"""The instance's table in the packet filter, as nft's JSON (libnftables-json(5)). No I/O.

Everything is in ``table inet <mark>``; no foreign table is ever touched. An *accept* in one
table is not final for another, so these rules never open what the host's firewall closes.

- Workloads reach out: sources of the subnet are masqueraded on other interfaces.
- Nothing enters a bridge from elsewhere (another instance's bridge, a neighbour on the
  host's own network) but answers and what was redirected to a published port.
- Published ports are elements of maps: (address,) protocol, port -> target and its port.
  Destination addresses of the host other than loopback are redirected, for packets
  from elsewhere and from the host itself. Loopback is left to the relay, so that
  ``route_localnet`` can stay 0 (CVE-2020-8558).
- A workload that reaches a neighbour by the host's address is masqueraded as the bridge, or
  the answer would go straight back with an address it does not expect.
- A workload that reaches itself so is not redirected but left to the relay's socket: where
  br_netfilter is active, the bridge would redirect the frame itself and then not send it
  back to the port it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from vmm.model.network import NetworkRecord
from vmm.model.spec import Port

Json = dict[str, Any]

#: Priorities as nft(8) names them: dstnat, filter, srcnat.
_BASE_CHAINS = (
    ("prerouting", "nat", "prerouting", -100),
    ("output", "nat", "output", -100),
    ("forward", "filter", "forward", 0),
    ("postrouting", "nat", "postrouting", 100),
)
#: Map name -> whether its key begins with the address, and what it gives.
_MAPS = (
    ("address_target", True, "ipv4_addr"),
    ("address_port", True, "inet_service"),
    ("any_target", False, "ipv4_addr"),
    ("any_port", False, "inet_service"),
)
#: Set of (source, protocol, port): workloads that call their own published ports.
_OWN = "own_ports"
ANY = "0.0.0.0"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A workload's ports that are redirected to its address ``target``."""

    target: str
    ports: tuple[Port, ...] = ()


class Table:
    """Documents for ``table inet <name>``; names with ``-`` are fine, JSON needs no quoting."""

    def __init__(self, name: str) -> None:
        self.name = name

    def rebuild(self, networks: Sequence[NetworkRecord], published: Iterable[Published]) -> Json:
        """Replace the whole table, in one transaction and whatever was there."""
        table = {"table": {"family": "inet", "name": self.name}}
        commands: list[Json] = [{"add": table}, {"delete": table}, {"add": table}]
        commands += [{"add": {"map": self._map(*each)}} for each in _MAPS]
        own = self._here(name=_OWN, type=["ipv4_addr", "inet_proto", "inet_service"])
        commands.append({"add": {"set": own}})
        commands.append({"add": {"chain": self._here(name="publish")}})
        for name, kind, hook, priority in _BASE_CHAINS:
            chain = self._here(name=name, type=kind, hook=hook, prio=priority, policy="accept")
            commands.append({"add": {"chain": chain}})
        for name, expression in _rules(networks):
            commands.append({"add": {"rule": self._here(chain=name, expr=expression)}})
        for one in published:
            commands += self._elements("add", one)
        return {"nftables": commands}

    def change(self, removed: Iterable[Published], added: Iterable[Published]) -> Json:
        """Take published ports away and add others, in one transaction."""
        commands: list[Json] = []
        for verb, group in (("delete", removed), ("add", added)):
            for one in group:
                commands += self._elements(verb, one)
        return {"nftables": commands}

    def remove(self) -> Json:
        """Remove the table; the add makes it no error when there is none."""
        table = {"table": {"family": "inet", "name": self.name}}
        return {"nftables": [{"add": table}, {"delete": table}]}

    def _here(self, **fields: Any) -> Json:
        return {"family": "inet", "table": self.name, **fields}

    def _map(self, name: str, with_address: bool, gives: str) -> Json:
        key = ["ipv4_addr"] * with_address + ["inet_proto", "inet_service"]
        return self._here(name=name, type=key, map=gives)

    def _elements(self, verb: str, published: Published) -> list[Json]:
        own = dict.fromkeys((p.protocol, p.host_port) for p in published.ports)
        calls = [{"concat": [published.target, *each]} for each in own]
        out: list[Json] = [{verb: {"element": self._here(name=_OWN, elem=calls)}}]
        for port in published.ports:
            key: list[str | int] = [port.protocol, port.host_port]
            kind = "any"
            if port.host_ip != ANY:
                kind, key = "address", [port.host_ip, *key]
            for suffix, value in (("target", published.target), ("port", port.container_port)):
                pair = [{"concat": key}, value]
                element = self._here(name=f"{kind}_{suffix}", elem=[pair])
                out.append({verb: {"element": element}})
        return out


def count_rules(networks: Sequence[NetworkRecord]) -> int:
    """How many rules the intact table has."""
    return len(_rules(networks))


def is_redirected(port: Port) -> bool:
    """Whether the port is redirected by the table (not loopback, not IPv6: those are relayed)."""
    return ":" not in port.host_ip and not port.host_ip.startswith("127.")


def _rules(networks: Sequence[NetworkRecord]) -> list[tuple[str, list[Json]]]:
    to_host = [
        _match(_fib_type(), "==", "local"),
        _match(_field("ip", "daddr"), "!=", _prefix("127.0.0.0/8")),
        {"jump": {"target": "publish"}},
    ]
    rules = [("prerouting", to_host), ("output", to_host)]
    itself = _match({"concat": [_field("ip", "saddr"), *_PORT]}, "==", f"@{_OWN}")
    rules.append(("publish", [itself, {"return": None}]))
    rules += [("publish", [_redirect("address")]), ("publish", [_redirect("any")])]
    for network in networks:
        rules += _forward_rules(network.bridge)
        for subnet in network.subnets:
            rules += _masquerade_rules(network.bridge, subnet)
    return rules


def _forward_rules(bridge: str) -> list[tuple[str, list[Json]]]:
    """What may enter ``bridge``; what leaves it is the business of other tables."""
    into = _match(_meta("oifname"), "==", bridge)
    allowed = (
        _match({"ct": {"key": "state"}}, "in", ["established", "related"]),
        _match(_meta("iifname"), "==", bridge),
        _match({"ct": {"key": "status"}}, "in", "dnat"),
    )
    rules = [("forward", [into, match, {"accept": None}]) for match in allowed]
    return [*rules, ("forward", [into, {"drop": None}])]


def _masquerade_rules(bridge: str, subnet: str) -> list[tuple[str, list[Json]]]:
    source = _match(_field("ip", "saddr"), "==", _prefix(subnet))
    redirected = _match({"ct": {"key": "status"}}, "in", "dnat")
    out = _match(_meta("oifname"), "!=", bridge)
    back = _match(_meta("oifname"), "==", bridge)
    hide: Json = {"masquerade": None}
    return [
        ("postrouting", [source, out, hide]),
        ("postrouting", [source, back, redirected, hide]),
    ]


def _redirect(kind: str) -> Json:
    key = list(_PORT)
    if kind == "address":
        key.insert(0, _field("ip", "daddr"))

    def look_up(suffix: str) -> Json:
        return {"map": {"key": {"concat": key}, "data": f"@{kind}_{suffix}"}}

    return {"dnat": {"family": "ip", "addr": look_up("target"), "port": look_up("port")}}


def _match(left: Json, operator: str, right: Any) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _fib_type() -> Json:
    return {"fib": {"result": "type", "flags": ["daddr"]}}


def _prefix(subnet: str) -> Json:
    address, _, bits = subnet.partition("/")
    return {"prefix": {"addr": address, "len": int(bits)}}


#: A packet's protocol and destination port.
_PORT = (_meta("l4proto"), _field("th", "dport"))
