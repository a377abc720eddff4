"""A spec's public part inside a domain's metadata: one JSON text, so that guests are found again
from libvirt, which shows it to any local user (``virsh -r dumpxml``).

libvirt's XML cannot carry control characters, and JSON strings say any character as ``\\uXXXX``:
the text is printable ASCII, whatever labels and environment hold.
"""

from __future__ import annotations

import re

import msgspec

from vmm.backends.libvirt.xml import Element, element
from vmm.model.spec import SCHEMA, WorkloadSpec, public

#: XML namespace of the element (virDomainGetMetadata(), VIR_DOMAIN_METADATA_ELEMENT).
NAMESPACE = "urn:vmm:workload:1"
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]")


def encode(spec: WorkloadSpec) -> str:
    """The spec as JSON of printable ASCII."""
    return _NOT_PLAIN.sub(_escaped, msgspec.json.encode(spec).decode())


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def of(spec: WorkloadSpec, mark: str) -> Element:
    """The domain's ``<metadata>``; ``mark`` tells instances apart."""
    attributes = {"xmlns:vmm": NAMESPACE, "instance": mark}
    return element("metadata", {}, element("vmm:workload", attributes, text=encode(public(spec))))


def decode(document: str, mark: str) -> WorkloadSpec | None:
    """The spec in what virDomainGetMetadata() gave; None when it is another instance's, or
    nothing that this version understands."""
    from xml.etree import ElementTree

    try:
        found = ElementTree.fromstring(document)
        if found.get("instance") != mark:
            return None
        spec = msgspec.json.decode(found.text or "", type=WorkloadSpec)
    except (ElementTree.ParseError, msgspec.MsgspecError, ValueError):
        return None
    return spec if spec.schema <= SCHEMA else None
