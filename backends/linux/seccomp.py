"""Seccomp filters of workloads, compiled once and kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os

from vmm.backends.linux import capabilities
from vmm.model.backend import HostFacts
from vmm.model.errors import HostError
from vmm.model.spec import WorkloadSpec

#: Part of the cache's key: raise it when the compiled form of the same input changes.
FORMAT = 1
#: A digest and the most instructions the kernel takes, 4096 of 8 bytes (BPF_MAXINSNS).
_READ_MAX = 32 + 4096 * 8


def default_profile() -> str:
    """The text of the profile that vmm brings along."""
    import vmm

    path = os.path.join(os.path.dirname(os.path.abspath(vmm.__file__)), "data", "seccomp.json")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise HostError(f"{path} is missing", "install vmm again") from None


def compiled(spec: WorkloadSpec, facts: HostFacts, cache: str) -> bytes:
    """The filter of a workload as struct sock_filter[]; empty when it has none.

    ``cache`` is a directory for compiled filters, made if missing; "" for no cache.
    """
    given = spec.security.seccomp
    if given == "unconfined" or (spec.security.privileged and not given):
        return b""
    text = given or default_profile()
    held = capabilities.bounding(spec.security, facts)
    path = f"{cache}/{_key(text, held, facts)}.bpf" if cache else ""
    found = _read(path) if path else b""
    if found:
        return found
    from vmm.backends.linux.bpf import build
    from vmm.backends.linux.profile import parse, reduce

    profile = parse(text, "seccomp profile")
    program = build(reduce(profile, held, facts))
    if path:
        _write(path, program)
    return program


def _key(text: str, held: int, facts: HostFacts) -> str:
    """Everything that the compiled bytes depend on."""
    from vmm.ports.kernel import lib

    version = lib.seccomp_version()
    library = (version.major, version.minor, version.micro)
    facts_key = repr((FORMAT, held, facts.architecture, facts.kernel, library))
    return hashlib.sha256(
        text.encode("utf-8", "surrogatepass") + b"\0" + facts_key.encode()
    ).hexdigest()


def _read(path: str) -> bytes:
    """A cached filter whose digest, its first 32 bytes, is right; else nothing."""
    try:
        with open(path, "rb") as file:
            data = file.read(_READ_MAX)
    except OSError:
        return b""
    program = data[32:]
    return program if hashlib.sha256(program).digest() == data[:32] else b""


def _write(path: str, program: bytes) -> None:
    from vmm.ports.files import atomic_write

    with contextlib.suppress(OSError):  # it is only compiled again
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        atomic_write(path, hashlib.sha256(program).digest() + program)
