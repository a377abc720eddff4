"""Names inside workloads: /etc/hosts, /etc/hostname, /etc/resolv.conf.

A name service makes the members of a network resolve each other. ``HostsFiles`` writes each
member's hosts file, which is bind-mounted, and so is rewritten in place: a new file would
not be seen inside.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from vmm.model.errors import UsageError
from vmm.model.network import Member
from vmm.ports.files import locked

#: Stands for the host's own address in ``--add-host``.
HOST_GATEWAY = "host-gateway"

_LOCALHOST = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z")
#: resolv.conf(5): what the host's own stub resolver really asks.
_STUB = "/run/systemd/resolve/resolv.conf"
_RESOLV = "/etc/resolv.conf"
_MAX_FILE = 1 << 16


class NameService(Protocol):
    """Makes the members of one network resolve each other."""

    def update(self, gateway: str, members: Callable[[], Sequence[Member]]) -> list[Member]:
        """Take note that ``members`` changed; it is asked under the network's lock. Those whose
        files were written."""
        ...


class HostsFiles:
    """The name service of hosts(5) files; ``lock`` is the network's lock file."""

    def __init__(self, lock: Path | str) -> None:
        self._lock = lock

    def update(self, gateway: str, members: Callable[[], Sequence[Member]]) -> list[Member]:
        """Rewrite every member's file whose content changes; members that are gone are left out."""
        changed = []
        with locked(self._lock):
            present = members()
            for one in present:
                others = [other for other in present if other.workload != one.workload]
                try:
                    if rewrite(one.hosts_path, render_hosts(one, others, gateway)):
                        changed.append(one)
                except FileNotFoundError:
                    continue  # its directory is being removed
        return changed


def render_hosts(own: Member, others: Iterable[Member] = (), gateway: str = "") -> str:
    """The hosts file of ``own``; without an address only localhost and the extra hosts.

    ``gateway`` is the address that ``host-gateway`` stands for.
    """
    lines = ["# written by vmm at every change of the network; edits are lost\n", _LOCALHOST]
    if own.address:
        lines.append(_line(own.address, own.names))
    for extra in own.extra_hosts:
        name, address = parse_extra_host(extra)
        lines.append(_line(_gateway(address, gateway, extra), (name,)))
    lines += [_line(other.address, other.names) for other in others if other.address]
    return "".join(lines)


def parse_extra_host(text: str) -> tuple[str, str]:
    """``NAME:ADDRESS`` or ``NAME=ADDRESS`` of ``--add-host``; ADDRESS may be host-gateway."""
    name, _, address = re.sub("[:=]", "\n", text, count=1).partition("\n")
    address = address.removeprefix("[").removesuffix("]")
    if not _HOST_NAME.match(name) or not (address == HOST_GATEWAY or _is_address(address)):
        raise UsageError(
            f"invalid extra host {text!r:.100}",
            "write it as NAME:ADDRESS with a literal address, or NAME:host-gateway",
        )
    return name, address


def rewrite(path: Path | str, text: str) -> bool:
    """Give the file this content, keeping its inode; whether anything changed.

    Written first and cut after, so that a reader never finds it empty. What a workload put
    there is read up to the wanted length only.
    """
    data = text.encode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_size == len(data) and os.pread(fd, len(data) + 1, 0) == data:
            return False
        os.fchmod(fd, 0o644)
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], done)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)
    return True


def host_resolv() -> str:
    """The host's resolv.conf; where that only names a local stub of systemd, what it asks."""
    text = _read(_RESOLV)
    if not any(not is_loopback(server) for server in name_servers(text)):
        return _read(_STUB) or text
    return text


def name_servers(text: str) -> list[str]:
    """The ``nameserver`` addresses of a resolv.conf(5)."""
    words = (line.split() for line in text.splitlines())
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]


def resolv_conf(
    host_text: str,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    loopback_ok: bool = False,
) -> str:
    """A workload's resolv.conf(5): the host's, with each part replaced that is given.

    Unless ``loopback_ok`` (the host's own network), servers of the host that a workload's
    network cannot reach are dropped: loopback and IPv6 ones. None is invented: a comment says
    so when nothing is left. ``search`` of "." means none.
    """
    servers = list(dns)
    if not servers:
        reachable = (s for s in name_servers(host_text) if loopback_ok or _is_reachable(s))
        servers = list(reachable)
    domains = list(search) or _last_words(host_text, ("search", "domain"))
    chosen = list(options) or _last_words(host_text, ("options",))
    for word in (*servers, *domains, *chosen):
        if not word.isprintable() or len(word.split()) != 1:
            raise UsageError(f"invalid word for resolv.conf: {word!r:.100}")
    lines = [f"nameserver {server}" for server in servers]
    if not servers:
        lines.append(_none_left(host_text))
    if domains and domains != ["."]:
        lines.append("search " + " ".join(domains))
    if chosen:
        lines.append("options " + " ".join(chosen))
    return "\n".join(lines) + "\n"


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _is_reachable(server: str) -> bool:
    return ":" not in server and not is_loopback(server)


def _none_left(host_text: str) -> str:
    dropped = ", ".join(name_servers(host_text)) or "none"
    return (
        "# no name server: those of the host cannot be reached from this network "
        f"({dropped}); give one with --dns"
    )


def _last_words(text: str, keywords: tuple[str, ...]) -> list[str]:
    """The words of the last line that begins with one of ``keywords``: later ones win."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in keywords:
            found = words[1:]
    return found


def _line(address: str, names: Sequence[str]) -> str:
    kept = [name for name in dict.fromkeys(names) if _HOST_NAME.match(name)]
    return f"{address}\t{' '.join(kept)}\n" if kept and _is_address(address) else ""


def _gateway(address: str, gateway: str, text: str) -> str:
    if address != HOST_GATEWAY:
        return address
    if not gateway:
        raise UsageError(
            f"extra host {text!r:.100}: this network has no host-gateway",
            "use the network bridge, or a literal address",
        )
    return gateway


def _is_address(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def _read(path: str) -> str:
    """A small file of the host as text; "" when there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE).decode(errors="replace")
    except OSError:
        return ""
