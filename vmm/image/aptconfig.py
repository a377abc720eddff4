"""The host's apt configuration, as far as a Debian image made on it needs it.

Formats: sources.list(5) (one-line and deb822), apt.conf(5), os-release(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from vmm.model.errors import HostError
from vmm.ports.runner import Runner

#: Archives of Debian itself; "bookworm-pgdg" is somebody else's.
_POCKETS = ("", "-updates", "-security", "/updates")
_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+(.+)\Z")
_SETTING = re.compile(
    r'Acquire::(?:(?:https?|ftp)::Proxy(?:::\S+)?|Check-Valid-Until|Check-Date) ".*";\Z'
)


def debian_sources(suite: str, etc: Path = Path("/etc")) -> str:
    """deb822 stanzas for ``suite`` from the host's Debian sources; HostError when it has none.

    On a host of another suite its own name is replaced, pocket by pocket.
    """
    own = _codename(etc)
    stanzas = []
    for stanza in _stanzas(etc):
        suites = _suites(stanza, suite) or _suites(stanza, own, suite)
        if suites:
            stanzas.append(_render({**stanza, "Types": "deb", "Suites": " ".join(suites)}))
    if not stanzas:
        raise HostError(
            f"the host's apt has no source of Debian {suite}",
            f"add one to {etc}/apt/sources.list, or import a root: vmm image import FILE.tar NAME",
        )
    return "\n".join(dict.fromkeys(stanzas))


def apt_settings(runner: Runner, environ: Mapping[str, str] | None = None) -> list[str]:
    """Proxy and date settings of the host's apt; without one the environment's proxies."""
    lines = runner.run(["apt-config", "dump"]).decode(errors="replace").splitlines()
    found = [line for line in map(str.strip, lines) if _SETTING.match(line)]
    environ = os.environ if environ is None else environ
    for scheme in ("http", "https"):
        proxy = environ.get(f"{scheme}_proxy") or environ.get(f"{scheme.upper()}_PROXY")
        name = f"Acquire::{scheme}::Proxy "
        if proxy and '"' not in proxy and not any(line.startswith(name) for line in found):
            found.append(f'{name}"{proxy}";')
    return found


def _codename(etc: Path) -> str:
    path = etc / "os-release"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip().strip('"')
    return ""


def _suites(stanza: Mapping[str, str], suite: str, wanted: str = "") -> list[str]:
    """The pockets of ``suite`` in a stanza, named as those of ``wanted``."""
    if not suite:
        return []
    found = [p for p in _POCKETS if suite + p in stanza.get("Suites", "").split()]
    return [(wanted or suite) + pocket for pocket in found]


def _stanzas(etc: Path) -> Iterator[dict[str, str]]:
    parts = sorted((etc / "apt" / "sources.list.d").glob("*"))
    for path in (etc / "apt" / "sources.list", *parts):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".sources":
            yield from _deb822(text)
        elif path.suffix == ".list":
            yield from _one_line(text)


def _deb822(text: str) -> Iterator[dict[str, str]]:
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and last:
                fields[last] += "\n" + line
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().title().replace("Uris", "URIs")
                fields[last] = value.strip()
        enabled = fields.get("Enabled", "yes").lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("Types", "").split():
            yield fields


def _one_line(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if not match:
            continue
        options, uri, suite, components = match.groups()
        fields = {"Types": "deb", "URIs": uri, "Suites": suite, "Components": components}
        for option in (options or "").split():
            key, _, value = option.partition("=")
            known = {"signed-by": "Signed-By", "trusted": "Trusted", "arch": "Architectures"}
            if key.lower() in known:
                fields[known[key.lower()]] = value.replace(",", " ")
        yield fields


def _render(fields: Mapping[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in fields.items())
