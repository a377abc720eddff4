"""What libvirt says of the hypervisor: emulator, machine type, QEMU's user."""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import TYPE_CHECKING

from vmm.backends.libvirt.port import Libvirt
from vmm.backends.libvirt.variant import Variant
from vmm.model.backend import Hypervisor
from vmm.model.errors import HostError, Unsupported

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Machine type by libvirt's name of the architecture; its versioned name is asked for.
MACHINES = {"x86_64": "q35"}
#: Where QEMU's helpers say what they are (docs/interop/vhost-user.json), the first one counts.
HELPERS = ("/etc/qemu/vhost-user", "/usr/share/qemu/vhost-user")
_BASE_LABEL = re.compile(r"\+?(\d+):\+?(\d+)\Z")


def ask(libvirt: Libvirt, variant: Variant, machine: str) -> Hypervisor:
    """The hypervisor of ``variant`` on a host of architecture ``machine`` (uname(2));
    Unsupported when there is none."""
    if machine not in MACHINES:
        raise Unsupported(
            f"backend {variant.name}: guests are made on {', '.join(MACHINES)} hosts, "
            f"this one is {machine}",
            "use --backend container",
        )
    answer = libvirt.domain_capabilities(machine, MACHINES[machine], variant.domain_type)
    found = _parse(answer)
    label = base_label(libvirt.capabilities(), variant.domain_type)
    uid, gid = label or owner(libvirt.uri)
    return Hypervisor(
        uri=libvirt.uri,
        accelerator=variant.accelerator,
        emulator=found.findtext("path", ""),
        machine=found.findtext("machine", ""),
        uid=uid,
        gid=gid,
        virtiofsd=_virtiofsd(HELPERS) if label and _has_virtiofs(found) else "",
        version=libvirt.version(),
        emulator_version=libvirt.emulator_version(),
        session=label is None,
    )


def _parse(document: str) -> Element:
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise HostError(f"libvirt's answer is not XML: {error}") from None


def base_label(capabilities: str, kind: str) -> tuple[int, int] | None:
    """Whom QEMU runs as: the DAC driver's base label (formatcaps.html); None in a session, which
    has no such driver."""
    for model in _parse(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") != "dac":
            continue
        for label in model.iterfind("baselabel"):
            found = _BASE_LABEL.match(label.text or "")
            if label.get("type") == kind and found:
                return int(found[1]), int(found[2])
    return None


def owner(uri: str) -> tuple[int, int]:
    """Whose session it is, by the socket that the URI names; else our own."""
    from vmm.backends.libvirt.control import socket_of

    with contextlib.suppress(OSError):
        status = os.stat(socket_of(uri))
        return status.st_uid, status.st_gid
    return os.geteuid(), os.getegid()


def _has_virtiofs(found: Element) -> bool:
    """Whether libvirt offers it (formatdomaincaps.html, "Filesystem")."""
    for enum in found.iterfind("devices/filesystem/enum"):
        if enum.get("name") == "driverType":
            return any(value.text == "virtiofs" for value in enum.iterfind("value"))
    return False


def _virtiofsd(directories: tuple[str, ...]) -> str:
    """The path of virtiofsd, as QEMU's packages declare it; "" for none."""
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            if path := _declared(f"{directory}/{name}"):
                return path
    return ""


def _declared(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
        binary = str(said["binary"]) if said.get("type") == "fs" else ""
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
    return binary if binary and os.access(binary, os.X_OK) else ""
