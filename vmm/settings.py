"""Settings: /etc/vmm/config.yaml, overridden by VMM_… variables, overridden by flags.

``configs/config.yaml`` documents every one; a test holds the two together.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from vmm.model.errors import InvalidDocument, UsageError

DEFAULT_ROOT = "/var/lib/vmm"
CONFIG = "/etc/vmm/config.yaml"


#: Settings that take one of few words.
CHOICES = {"log_driver": ("json-file", "none"), "storage_driver": ("overlay",)}


@dataclass(frozen=True)
class Settings:
    """One instance's settings. Sizes are bytes, times seconds."""

    root: str = DEFAULT_ROOT
    #: Domain put before a bare image name.
    default_domain: str = "docker.io"
    #: Addresses a port published without one is bound to.
    publish_addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    #: Pools a network's subnet is chosen from; each subnet has ``subnet_prefix`` bits.
    subnet_pools: tuple[str, ...] = ("172.17.0.0/12", "10.64.0.0/10", "192.168.0.0/16")
    subnet_prefix: int = 20
    mtu: int = 1500
    backend: str = "auto"
    storage_driver: str = "overlay"
    log_driver: str = "json-file"
    log_max_size: int = 10 << 20
    log_max_file: int = 3
    stop_timeout: int = 10
    detach_keys: str = "ctrl-p,ctrl-q"
    #: Path of a seccomp profile in Docker's JSON form; "" is the shipped one.
    seccomp_profile: str = ""
    pids_limit: int = 4096
    #: The libvirt that runs guests: qemu:///system, or qemu:///session?socket=PATH, a user's.
    libvirt_uri: str = "qemu:///system"
    #: Kernel that guests boot, by its name in ``vmm kernel ls``; "" is the newest.
    kernel: str = ""
    #: Size of a guest without --memory.
    guest_memory: int = 512 << 20
    #: Largest size a guest's writable disk can grow to.
    guest_disk: int = 10 << 30
    #: Where programs of the native core are; "" is inside the package.
    libexec: str = ""
    sources: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def instance(self) -> str:
        """``default``, or the first 8 hex of sha256(realpath(root))."""
        real = os.path.realpath(self.root)
        if real == DEFAULT_ROOT:
            return "default"
        return hashlib.sha256(os.fsencode(real)).hexdigest()[:8]

    @property
    def mark(self) -> str:
        """Name of the instance's cgroup parent and nftables table."""
        return "vmm" if self.instance == "default" else f"vmm-{self.instance}"

    @property
    def bridge(self) -> str:
        """Name of the default bridge interface."""
        return "vmm0" if self.instance == "default" else f"vmm-{self.instance}"

    @property
    def run_dir(self) -> Path:
        return Path("/run/vmm") / self.instance

    @property
    def root_path(self) -> Path:
        return Path(self.root)

    @property
    def libexec_dir(self) -> Path:
        return Path(self.libexec) if self.libexec else Path(__file__).parent / "libexec"


def load(root: str | None = None, environ: dict[str, str] | None = None) -> Settings:
    """Read the settings; ``root`` (the flag) wins over VMM_ROOT and the file."""
    env = dict(os.environ) if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    path = env.get("VMM_CONFIG", CONFIG)
    if os.path.exists(path):
        values, sources = _from_file(path)
    elif "VMM_CONFIG" in env:
        raise UsageError(f"VMM_CONFIG: {path} does not exist")
    hints = get_type_hints(Settings)
    for item in _settable():
        variable = f"VMM_{item.upper()}"
        if variable in env:
            values[item] = _convert(variable, env[variable], hints[item])
            sources[item] = f"environment variable {variable}"
    for item, words in CHOICES.items():
        if values.get(item, words[0]) not in words:
            raise UsageError(
                f"{sources[item]}: {item}: {values[item]!r:.80} is not supported",
                f"write one of: {', '.join(words)}",
            )
    if root:
        values["root"] = root
        sources["root"] = "--root"
    if "root" in values:
        values["root"] = os.path.abspath(values["root"])
    return replace(Settings(), **values, sources=sources)


def _settable() -> list[str]:
    return [f.name for f in fields(Settings) if f.name != "sources"]


def _convert(where: str, text: str, kind: Any) -> Any:
    if kind is int:
        if not text.lstrip("-").isdigit():
            raise UsageError(f"{where}: {text!r} is not a whole number")
        return int(text)
    if kind is str:
        return text
    return tuple(part for part in text.replace(",", " ").split() if part)


def _from_file(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    from vmm.ports.yaml import load_yaml

    document, lines = load_yaml(path)
    if document is None:
        return {}, {}
    if not isinstance(document, dict):
        raise InvalidDocument(path, ["must be a mapping of settings"])
    hints = get_type_hints(Settings)
    faults, values, sources = [], {}, {}
    for key, value in document.items():
        place = f"line {lines.get(key, 0)}: {key}"
        if key not in _settable():
            faults.append(f"{place}: no such setting")
            continue
        wanted = hints[key]
        kind = tuple if wanted not in (int, str) else wanted
        if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            what = {int: "a whole number", str: "text", tuple: "a list of texts"}[kind]
            faults.append(f"{place}: must be {what}")
            continue
        values[key] = value
        sources[key] = f"{path}:{lines.get(key, 0)}"
    if faults:
        raise InvalidDocument(path, faults, "configs/config.yaml documents every setting")
    return values, sources
