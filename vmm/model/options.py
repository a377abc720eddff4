"""Values of options as text, made into typed values: pure, shared by every face.

Forms and messages are those of Docker's command line (docker-run(1)); every
fault is a UsageError whose hint shows a value that works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

from vmm.model.errors import UsageError
from vmm.model.spec import Device, Log, Restart, Ulimit

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s?([kKmMgGtTpP])?(?:[iI]?[bB])?\Z")
_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
#: Largest value a size may have: what fits in the kernel's signed 64-bit files.
MAX_SIZE = (1 << 63) - 1
MINIMUM_MEMORY = 6 << 20
NETWORKS = ("bridge", "none", "host")


def boolean(text: str) -> bool:
    """As Go's strconv.ParseBool."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise UsageError(f'strconv.ParseBool: parsing "{text}": invalid syntax', "use true or false")


def integer(text: str, what: str, *, low: int, high: int = MAX_SIZE) -> int:
    """A whole number within bounds; ``what`` names the option."""
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise UsageError(f"{what}: {text!r} is not a whole number")
    value = int(text)
    if not low <= value <= high:
        raise UsageError(f"{what}: {value} is not between {low} and {high}")
    return value


def size(text: str) -> int:
    """Bytes of ``512m``, ``1.5g``, ``64KiB``; every unit is binary (docker-run(1), --memory)."""
    match = _SIZE.match(text.strip()) if text.isascii() and len(text) < 64 else None
    if not match:
        raise UsageError(f"invalid size: '{text:.80}'", "use a number and b, k, m, g or t: 512m")
    number, unit = match.group(1), (match.group(2) or "").lower()
    whole, _, fraction = number.partition(".")
    value = int(whole) << _SHIFTS[unit]
    if fraction:
        value += (int(fraction) << _SHIFTS[unit]) // 10 ** len(fraction)
    if value > MAX_SIZE:
        raise UsageError(f"invalid size: '{text:.80}': too large", "the largest is 2^63-1 bytes")
    return value


def memory(text: str) -> int:
    """A memory limit, at least Docker's 6 MiB."""
    value = size(text)
    if value < MINIMUM_MEMORY:
        raise UsageError("Minimum memory limit allowed is 6MB", "give at least --memory 6m")
    return value


def memory_swap(text: str, limit: int | None) -> int:
    """Memory plus swap; -1 is unlimited. Needs a memory limit that is not larger."""
    value = -1 if text.strip() == "-1" else size(text)
    if limit is None:
        raise UsageError(
            "You should always set the Memory limit when using Memoryswap limit, see usage",
            "add --memory",
        )
    if 0 <= value < limit:
        raise UsageError(
            "Minimum memoryswap limit should be larger than memory limit, see usage",
            "--memory-swap is memory plus swap; -1 is unlimited swap",
        )
    return value


def nano_cpus(text: str) -> int:
    """Billionths of a CPU of ``1.5``; at least a hundredth of one."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\.\d{1,9}", text):
        raise UsageError(f"failed to parse {text} as a rational number", "use --cpus 1.5")
    whole, _, fraction = text.partition(".")
    value = int(whole or 0) * 10**9 + int((fraction or "0").ljust(9, "0"))
    if value < 10_000_000:
        raise UsageError(f"invalid value {text}: range of CPUs starts at 0.01", "use --cpus 0.5")
    return value


def cpuset(text: str) -> str:
    """A list of CPUs, ``0-2,5`` (cpuset(7), "List format")."""
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if not match or (match.group(2) and int(match.group(2)) < int(match.group(1))):
            raise UsageError(f"invalid cpuset: {text!r:.80}", "use CPU numbers: 0-2,5")
    return text


def duration(text: str) -> int:
    """Nanoseconds of Go's ``1h30m``, ``1.5s``."""
    total, position = 0, 0
    for match in _DURATION.finditer(text):
        if match.start() != position:
            break
        whole, _, fraction = match.group(1).partition(".")
        unit = _UNITS[match.group(2)]
        total += int(whole) * unit + (int(fraction or 0) * unit) // 10 ** len(fraction)
        position = match.end()
    if position != len(text) or not text:
        raise UsageError(f'invalid duration "{text:.80}"', "use a number and ms, s, m or h: 1m30s")
    return total


def probe_time(text: str) -> int:
    """A duration of the health check: 0, or at least 1 ms (Docker's bound)."""
    value = 0 if text == "0" else duration(text.removeprefix("-"))
    if value and text.startswith("-"):
        raise UsageError("it cannot be negative", "use a number and ms, s, m or h: 1m30s")
    if 0 < value < 10**6:
        raise UsageError("it cannot be less than 1ms", "use a number and ms, s, m or h: 1m30s")
    return value


def timestamp(text: str, now: int) -> int:
    """Nanoseconds UTC of RFC 3339, a date, UNIX seconds, or a duration before ``now``."""
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        whole, _, fraction = text.partition(".")
        return int(whole) * 10**9 + int(fraction.ljust(9, "0") or 0)
    if _DURATION.match(text):
        return now - duration(text)
    from datetime import datetime

    match = re.fullmatch(r"(\d{4}-\d\d-\d\d(?:T[\d:]+)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", text)
    try:
        if not match:
            raise ValueError(text)
        moment = datetime.fromisoformat(match.group(1) + (match.group(3) or ""))
    except ValueError:
        raise UsageError(
            f"invalid time {text!r:.80}", "use 2026-01-31T12:00:00Z, UNIX seconds, or 10m"
        ) from None
    return int(moment.timestamp()) * 10**9 + int((match.group(2) or "").ljust(9, "0"))


def stop_signal(text: str) -> str:
    """``text`` when it is a signal, as it was written."""
    from vmm.model.signals import number

    number(text)
    return text


def restart(text: str) -> Restart:
    """``no``, ``always``, ``unless-stopped``, ``on-failure[:max-retries]``."""
    policy, colon, count = text.partition(":")
    hint = "use no, always, unless-stopped or on-failure[:max-retries]"
    if not text:
        return Restart()
    if not policy:
        raise UsageError("invalid restart policy format: no policy provided before colon", hint)
    if policy not in {"no", "always", "unless-stopped", "on-failure"}:
        raise UsageError(
            f"invalid restart policy: unknown policy '{policy:.80}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if colon and policy != "on-failure":
        raise UsageError(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'", hint
        )
    if colon and not re.fullmatch(r"[0-9]{1,9}", count):
        raise UsageError(
            "invalid restart policy format: maximum retry count must be a whole number", hint
        )
    kind = cast(Literal["no", "always", "unless-stopped", "on-failure"], policy)
    return Restart(policy=kind, max_retries=int(count or 0))


def ulimit(text: str) -> Ulimit:
    """``nofile=1024[:2048]``; -1 is unlimited. The name is checked by the backend."""
    name, equals, limits = text.partition("=")
    hint = "use NAME=SOFT[:HARD]: nofile=1024:2048"
    if not equals or not name:
        raise UsageError(f"invalid ulimit argument: {text:.80}", hint)
    parts = limits.split(":")
    if len(parts) > 2:
        raise UsageError(
            f"too many limit value arguments - {limits:.80}, can only have up to two, `soft[:hard]`"
        )
    values = [-1 if p == "unlimited" else integer(p, f"ulimit {name}", low=-1) for p in parts]
    soft, hard = values[0], values[-1]
    if hard != -1 and (soft > hard or soft == -1):
        raise UsageError(
            f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}", hint
        )
    return Ulimit(name=name, soft=soft, hard=hard)


def device(text: str) -> Device:
    """``HOST[:INSIDE[:rwm]]``."""
    parts = text.split(":")
    hint = "use /dev/HOST[:/dev/INSIDE[:rwm]]"
    if len(parts) > 3 or not all(parts):
        raise UsageError(f"invalid device specification: {text:.80}", hint)
    host, inside, permissions = parts[0], parts[0], "rwm"
    for part in parts[1:]:
        if part.startswith("/"):
            inside = part
        else:
            permissions = part
    if not re.fullmatch(r"r?w?m?", permissions) or not permissions:
        raise UsageError(f"bad mode specified: {permissions:.80}", hint)
    if not (host.startswith("/") and inside.startswith("/")):
        raise UsageError(f"{host:.80} is not an absolute path", hint)
    return Device(host_path=host, path=inside, permissions=permissions)


def environment(items: Iterable[str], caller: Mapping[str, str]) -> list[str]:
    """``KEY=VALUE`` as it is; a bare ``KEY`` takes the caller's value, or is left out."""
    result = []
    for item in items:
        name, equals, _ = item.partition("=")
        if not name or "\0" in item:
            raise UsageError(f"invalid environment variable: {item!r:.80}", "use KEY=VALUE")
        if equals:
            result.append(item)
        elif name in caller:
            result.append(f"{name}={caller[name]}")
    return result


def env_file(text: str, path: str) -> list[str]:
    """Lines of an ``--env-file``: blank ones and ``#`` comments do not count, no quoting."""
    items = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name:
            raise UsageError(f"{path}:{number}: no variable name on line '{line:.80}'")
        if any(c.isspace() for c in name):
            raise UsageError(
                f"{path}:{number}: variable '{name:.80}' contains whitespaces",
                "write KEY=VALUE, one a line",
            )
        items.append(line)
    return items


def pairs(items: Iterable[str], what: str, *, need_value: bool = False) -> dict[str, str]:
    """``key=value`` items, later ones win; a bare key has the value ``""``."""
    result = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or "\0" in item or (need_value and not equals):
            raise UsageError(f"invalid {what}: {item!r:.80}", "use KEY=VALUE")
        result[key] = value
    return result


def metadata(items: Iterable[str]) -> dict[str, str]:
    """``--meta key=value``; keys as they can be kept in a ZFS property name."""
    from vmm.model.ids import META_KEY

    result = pairs(items, "metadata", need_value=True)
    for key in result:
        if not META_KEY.match(key):
            raise UsageError(
                f"invalid metadata key {key!r:.80}",
                "use 1 to 200 of [a-z0-9:._/-], the first a letter or digit",
            )
    return result


def extra_host(text: str) -> str:
    """``NAME:ADDRESS`` of --add-host; also ``NAME=ADDRESS``, ``[v6]`` and ``host-gateway``."""
    match = re.fullmatch(r"([^:=\s]{1,253})[:=](.+)", text)
    if not match:
        raise UsageError(f'bad format for add-host: "{text:.80}"', "use NAME:ADDRESS")
    name, address = match.groups()
    address = re.sub(r"\A\[(.*)\]\Z", r"\1", address)
    if address != "host-gateway" and not is_address(address):
        raise UsageError(f'invalid IP address in add-host: "{address:.80}"', "use NAME:ADDRESS")
    return f"{name}:{address}"


def is_address(text: str) -> bool:
    """A literal IPv4 or IPv6 address without zone."""
    import ipaddress

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def dns_server(text: str) -> str:
    if not is_address(text):
        raise UsageError(f"{text:.80} is not an ip address", "use --dns 192.0.2.1")
    return text


def log(driver: str, items: Sequence[str], default: Log) -> Log | None:
    """``--log-driver`` and ``--log-opt``; None when neither was said."""
    if not driver and not items:
        return None
    driver = driver or default.driver
    if driver not in {"json-file", "none"}:
        raise UsageError(
            f"log driver {driver!r:.80} is not supported", "use --log-driver json-file or none"
        )
    values = pairs(items, "log option", need_value=True)
    if unknown := sorted(set(values) - {"max-size", "max-file"}):
        raise UsageError(
            f"unknown log opt '{unknown[0]:.80}' for {driver} log driver",
            "max-size and max-file are supported",
        )
    if driver == "none" and values:
        raise UsageError("--log-opt needs --log-driver json-file", "drop one of the two")
    top = size(values["max-size"]) if "max-size" in values else default.max_size
    files = default.max_file
    if "max-file" in values:
        files = integer(values["max-file"], "log-opt max-file", low=1, high=1000)
    if top < 1 << 12:
        raise UsageError("log-opt max-size is below 4k", "use --log-opt max-size=10m")
    return Log(driver=cast(Literal["json-file", "none"], driver), max_size=top, max_file=files)


class SecurityOptions(NamedTuple):
    """``--security-opt`` values. ``seccomp``: "", "unconfined", or the path of a profile."""

    no_new_privileges: bool = False
    seccomp: str = ""
    unmask: bool = False


def security(items: Iterable[str]) -> SecurityOptions:
    """``no-new-privileges[=bool]``, ``seccomp=unconfined|FILE``, ``systempaths=unconfined``."""
    result = SecurityOptions()
    for item in items:
        match = re.fullmatch(r"([a-z-]+)(?:[=:](.+))?", item)
        key, value = match.groups() if match else (item, None)
        if key == "no-new-privileges":
            result = result._replace(no_new_privileges=boolean(value) if value else True)
        elif key == "seccomp" and value:
            result = result._replace(seccomp=value)
        elif key == "systempaths" and value == "unconfined":
            result = result._replace(unmask=True)
        else:
            raise UsageError(
                f"invalid --security-opt: {item!r:.80}",
                "no-new-privileges, seccomp=unconfined|FILE and systempaths=unconfined are"
                " supported; AppArmor and SELinux labels are not",
            )
    return result


def network_mode(text: str) -> str:
    """The name of a network that there is; sharing another container's is refused."""
    if text.startswith(("container:", "ns:")):
        raise UsageError(
            f"--network {text:.80}: sharing another namespace is not supported",
            "use --network bridge, none or host",
        )
    text = "bridge" if text in {"", "default"} else text
    if text not in NETWORKS:
        raise UsageError(f"network {text!r:.80} not found", "use --network bridge, none or host")
    return text


def hostname(text: str) -> str:
    """A host name, perhaps with its domain (RFC 1123; hostname(7))."""
    label = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]{0,62})"
    if text and (not re.fullmatch(rf"{label}(?:\.{label})*", text)):
        raise UsageError(f"invalid hostname: {text!r:.80}", "use letters, digits, '-' and '.'")
    if len(text) > 64:
        raise UsageError(
            f"invalid hostname: {text!r:.80}", "with its domain it has at most 64 letters"
        )
    return text


def capabilities(items: Iterable[str]) -> tuple[str, ...]:
    """``NET_ADMIN``, ``cap_net_admin``, ``ALL`` as ``CAP_NET_ADMIN``, ``ALL``; duplicates gone."""
    names = []
    for item in items:
        name = item.upper()
        if name != "ALL":
            name = "CAP_" + name.removeprefix("CAP_")
        if not re.fullmatch(r"ALL|CAP_[A-Z_]{1,40}", name):
            raise UsageError(f"invalid capability: {item!r:.80}", "use a name: NET_ADMIN, or ALL")
        names.append(name)
    return tuple(dict.fromkeys(names))
