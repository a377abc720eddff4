"""A small writer of XML: what the domain needs, and text that always survives the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from vmm.model.errors import HostError

#: What XML 1.0 cannot say in any form (section 2.2, "Char").
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SPECIAL = re.compile("[&<>\"'\t\n\r\x7f-\x9f]")
_NAMES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}


class Element(NamedTuple):
    """An element with either children or text."""

    tag: str
    attributes: tuple[tuple[str, str], ...] = ()
    children: tuple[Element, ...] = ()
    text: str = ""

    def render(self, depth: int = 0) -> str:
        """The element and all below it, one a line, indented."""
        pad = "  " * depth
        start = self.tag + "".join(f" {key}='{escape(value)}'" for key, value in self.attributes)
        if self.children:
            inner = "".join(child.render(depth + 1) for child in self.children)
            return f"{pad}<{start}>\n{inner}{pad}</{self.tag}>\n"
        if self.text:
            return f"{pad}<{start}>{escape(self.text)}</{self.tag}>\n"
        return f"{pad}<{start}/>\n"


def element(
    tag: str,
    attributes: Mapping[str, str | int] | Mapping[str, str] | None = None,
    *children: Element | None,
    text: str | int = "",
) -> Element:
    """Make an element; children that are None are left out."""
    pairs = tuple((key, str(value)) for key, value in (attributes or {}).items())
    return Element(tag, pairs, tuple(child for child in children if child), str(text))


def escape(text: str) -> str:
    """Text for an attribute or an element; HostError for what XML cannot carry."""
    if found := _IMPOSSIBLE.search(text):
        raise HostError(
            f"{text!r:.80}: libvirt's XML cannot carry the character {found[0]!r}",
            "use a path without control characters, in UTF-8",
        )
    return _SPECIAL.sub(lambda match: _NAMES.get(match[0]) or f"&#{ord(match[0])};", text)
