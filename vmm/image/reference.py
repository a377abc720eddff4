"""Image references: ``[domain/]path[:tag][@digest]``.

The grammar is distribution/reference's (the one Docker uses), including the
familiar short forms: ``busybox`` is ``docker.io/library/busybox:latest``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vmm.model.errors import UsageError

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL = "library/"
MAX_NAME = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?\Z")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z|sha512:[0-9a-f]{128}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


class Reference(NamedTuple):
    """A normalised reference; ``tag`` or ``digest`` (or both) is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository, without tag and digest."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self, default_domain: str = DEFAULT_DOMAIN) -> str:
        """The short form that people type."""
        return self.familiar_name(default_domain) + self._suffix()

    def familiar_name(self, default_domain: str = DEFAULT_DOMAIN) -> str:
        if self.domain != default_domain:
            return self.name
        path = self.path
        if self.domain == DEFAULT_DOMAIN and path.startswith(OFFICIAL):
            rest = path.removeprefix(OFFICIAL)
            path = path if "/" in rest else rest
        return path

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return tag + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """Whether ``text`` is a well-formed sha256 or sha512 digest."""
    return _DIGEST.match(text) is not None


def parse(text: str, default_domain: str = DEFAULT_DOMAIN) -> Reference:
    """Parse and normalise what a user typed; UsageError says what is wrong with it."""
    if not text or len(text) > 1024:
        raise _invalid(text, "it is empty" if not text else "it is too long")
    if _HEX64.match(text):
        raise UsageError(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings",
            "64 hexadecimal digits mean an image ID; choose another name",
        )
    rest, digest = _split_digest(text)
    rest, tag = _split_tag(rest, text)
    domain, path = _split_domain(rest, default_domain)
    _check_name(domain, path, text)
    return Reference(domain, path, tag or ("" if digest else DEFAULT_TAG), digest)


def familiar(text: str, default_domain: str = DEFAULT_DOMAIN) -> str:
    """The familiar form of a reference in any form."""
    return parse(text, default_domain).familiar(default_domain)


def _split_digest(text: str) -> tuple[str, str]:
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        raise _invalid(text, f"{digest!r:.90} is not a digest (sha256: and 64 hexadecimal digits)")
    return rest, digest


def _split_tag(rest: str, text: str) -> tuple[str, str]:
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, ""
    if not _TAG.match(tag):
        raise _invalid(text, f"{tag!r:.140} is not a tag (1 to 128 of [A-Za-z0-9_.-])")
    return name, tag


def _split_domain(rest: str, default_domain: str) -> tuple[str, str]:
    """The part before the first ``/`` is a domain only if it looks like one."""
    first, slash, path = rest.partition("/")
    named = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    domain, path = (first, path) if named else (default_domain, rest)
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = OFFICIAL + path
    return domain, path


def _check_name(domain: str, path: str, text: str) -> None:
    if not _DOMAIN.match(domain):
        raise _invalid(text, f"{domain!r:.80} is not a domain")
    if path != path.lower() and _PATH.match(path.lower()):
        raise UsageError(
            f"invalid reference format: repository name ({path:.120}) must be lowercase",
            f"write {text.lower():.120}",
        )
    if not _PATH.match(path):
        raise _invalid(text, f"{path!r:.80} is not a repository path ([a-z0-9] with . _ - and /)")
    if len(path) > MAX_NAME:
        raise UsageError(f"repository name must not be more than {MAX_NAME} characters")


def _invalid(text: str, why: str) -> UsageError:
    return UsageError(f"invalid reference format: {text!r:.140}: {why}", "example: busybox:1.36")
