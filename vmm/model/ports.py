"""Published ports as text: ``[ADDRESS:][HOST[-HOST]:]PORT[-PORT][/tcp|udp]``."""

from __future__ import annotations

import re
from typing import Literal, cast

from vmm.model.errors import UsageError
from vmm.model.options import is_address
from vmm.model.spec import Port

_HINT = "use [ADDRESS:][HOST:]PORT[/udp]: 8080:80, 127.0.0.1:5300:53/udp, 8000-8002:80-82"
#: Widest range of one -p: each port is a socket that is held.
MAX_RANGE = 1024


def publish(text: str) -> tuple[Port, ...]:
    """The ports of one ``-p``; ``host_ip`` "" and ``host_port`` 0 are left to the engine."""
    if "=" in text:
        return _long_form(text)
    body, slash, protocol = text.partition("/")
    address, host, inside = _split(body, text)
    return _expand(text, address, host, inside, protocol if slash else "tcp")


def _split(body: str, text: str) -> tuple[str, str, str]:
    """Address, host port and container port of ``body``; IPv6 addresses are in brackets."""
    if match := re.fullmatch(r"\[([^\]]*)\]:(.*)", body):
        address, rest = match.groups()
        host, _, inside = rest.rpartition(":")
    elif body.count(":") > 2:
        raise UsageError(f"invalid publish specification: {text:.80}", "put IPv6 in brackets")
    else:
        front, _, inside = body.rpartition(":")
        address, _, host = front.rpartition(":")
    if address and not is_address(address):
        raise UsageError(f"invalid IP address: {address:.80}", _HINT)
    if not inside:
        raise UsageError(f"no port specified: {text:.80}", _HINT)
    return address, host, inside


def _expand(text: str, address: str, host: str, inside: str, protocol: str) -> tuple[Port, ...]:
    protocol = protocol.lower()
    if protocol not in {"tcp", "udp"}:
        raise UsageError(f"invalid proto: {protocol:.80}", "tcp and udp are supported")
    first, last = _range(inside, "containerPort")
    count = last - first + 1
    low, high = _range(host, "hostPort") if host else (0, 0)
    if host and count == 1 and high > low:
        raise UsageError(
            f"{text:.80}: a range of host ports for one container port is not supported",
            "name one host port, or none for a free one",
        )
    if host and high - low + 1 != count:
        raise UsageError(
            f"invalid ranges specified for container and host Ports: {inside} and {host}", _HINT
        )
    kind = cast(Literal["tcp", "udp"], protocol)
    return tuple(
        Port(
            container_port=first + i,
            host_ip=address,
            host_port=low + i if host and low else 0,
            protocol=kind,
        )
        for i in range(count)
    )


def _range(text: str, what: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    low = int(match.group(1)) if match else -1
    high = int(match.group(2) or low) if match else -1
    lowest = 1 if what == "containerPort" else 0
    if not lowest <= low <= high <= 65535:
        raise UsageError(f"invalid {what}: {text:.80}", _HINT)
    if high - low >= MAX_RANGE:
        raise UsageError(f"invalid {what}: {text}: more than {MAX_RANGE} ports", _HINT)
    return low, high


def _long_form(text: str) -> tuple[Port, ...]:
    """``published=8080,target=80,protocol=tcp``."""
    fields = {}
    for item in text.split(","):
        key, _, value = item.partition("=")
        if key not in {"published", "target", "protocol", "host_ip"} or not value:
            raise UsageError(f"invalid field {item!r:.80} in {text!r:.80}", _HINT)
        fields[key] = value
    if "target" not in fields:
        raise UsageError(f"no port specified: {text:.80}", "give target=PORT")
    return _expand(
        text,
        fields.get("host_ip", ""),
        fields.get("published", ""),
        fields["target"],
        fields.get("protocol", "tcp"),
    )
