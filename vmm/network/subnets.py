"""IPv4 subnets and addresses as plain numbers: choosing, allocating, naming. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmm.model.errors import Conflict, UsageError

_QUAD = re.compile(r"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")


class Subnet(NamedTuple):
    """``base`` is the network address as a 32-bit number, ``prefix`` the number of its bits."""

    base: int
    prefix: int

    @property
    def size(self) -> int:
        return 1 << (32 - self.prefix)

    def overlaps(self, other: Subnet) -> bool:
        return self.base < other.base + other.size and other.base < self.base + self.size

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.base <= address < self.base + self.size

    def __str__(self) -> str:
        return f"{dotted(self.base)}/{self.prefix}"


def number(address: str) -> int:
    """An IPv4 address (dotted quad, RFC 6943 section 3.1.1 strict form) as a number."""
    parts = [int(p) for p in address.split(".")] if _QUAD.match(address) else [256]
    if max(parts) > 255:
        raise UsageError(f"{address!r:.60} is not an IPv4 address", "write it as 172.17.0.2")
    return int.from_bytes(bytes(parts), "big")


def dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4, "big"))


def parse(text: str) -> Subnet:
    """``a.b.c.d/n``, host bits dropped."""
    address, prefix = _halves(text)
    return Subnet(address & (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF, prefix)


def _halves(text: str) -> tuple[int, int]:
    address, slash, prefix = text.partition("/")
    bits = int(prefix) if prefix.isdecimal() and len(prefix) < 3 else 33
    if not slash or bits > 32:
        raise UsageError(f"{text!r:.60} is not a subnet", "write it as 172.17.0.0/16")
    return number(address), bits


def pool_subnets(pool: str, prefix: int) -> Iterator[Subnet]:
    """The subnets of ``prefix`` bits in ``pool``, from the address written there round to it.

    ``172.17.0.0/12`` so is all of 172.16.0.0/12, with 172.16.0.0 as the last resort.
    """
    whole = parse(pool)
    if not whole.prefix <= prefix <= 30:
        raise UsageError(
            f"subnet_prefix {prefix} does not fit the pool {pool}",
            f"choose {whole.prefix} to 30 in the settings",
        )
    size = 1 << (32 - prefix)
    count = whole.size // size
    first = (_halves(pool)[0] - whole.base) // size
    for step in range(count):
        yield Subnet(whole.base + (first + step) % count * size, prefix)


def choose(pools: Sequence[str], prefix: int, taken: Iterable[Subnet]) -> Subnet:
    """The first subnet of the pools that overlaps none of ``taken``."""
    used = list(taken)
    for pool in pools:
        for subnet in pool_subnets(pool, prefix):
            if not any(subnet.overlaps(other) for other in used):
                return subnet
    raise Conflict(
        f"no free subnet of {prefix} bits in {', '.join(pools) or 'the (empty) subnet_pools'}",
        "add a pool to the setting subnet_pools, or choose a larger subnet_prefix",
    )


def collision(subnet: Subnet, taken: Iterable[Subnet]) -> Subnet | None:
    """The first of ``taken`` that overlaps ``subnet``."""
    return next((other for other in taken if subnet.overlaps(other)), None)


def gateway(subnet: Subnet) -> str:
    """The bridge's own address: the first host address."""
    return dotted(subnet.base + 1)


def candidates(subnet: Subnet) -> Iterator[str]:
    """The addresses workloads may have, lowest first (not network, gateway, broadcast)."""
    return map(dotted, range(subnet.base + 2, subnet.base + subnet.size - 1))


def check_address(subnet: Subnet, address: str) -> str:
    """``address`` if a workload on ``subnet`` may have it."""
    value = number(address)
    if value not in subnet or value - subnet.base in (0, 1, subnet.size - 1):
        raise UsageError(
            f"address {address} cannot be given on the subnet {subnet}",
            f"use {dotted(subnet.base + 2)} to {dotted(subnet.base + subnet.size - 2)}",
        )
    return address


def mac_for(address: str) -> str:
    """A locally administered unicast hardware address derived from ``address``: 02:42:a.b.c.d.

    Since it follows the address, a neighbour's ARP cache stays right when an address is reused.
    """
    return "02:42:" + ":".join(f"{byte:02x}" for byte in number(address).to_bytes(4, "big"))


def check_mac(mac: str) -> str:
    """``mac`` in lower case, if it is the hardware address of one interface (not a group)."""
    plain = mac.lower()
    if not _MAC.match(plain) or int(plain[:2], 16) & 1 or plain == "00:00:00:00:00:00":
        raise UsageError(
            f"{mac!r:.60} is not a unicast hardware address", "write it as 02:42:ac:11:00:02"
        )
    return plain
