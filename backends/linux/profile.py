"""Seccomp profiles in Docker's JSON form: read, checked, and reduced to rules for one workload.

The form is that of docker's "Seccomp security profiles for Docker" page, a superset of the
runtime-spec's config-linux.md, "Seccomp".
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from vmm.backends.linux.capabilities import BIT
from vmm.model.backend import HostFacts
from vmm.model.errors import InvalidDocument

#: Return values of a filter (seccomp(2)); ERRNO and TRACE carry a number in the low 16 bits.
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")

#: enum scmp_compare of seccomp.h.
COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
MASKED = COMPARISONS["SCMP_CMP_MASKED_EQ"]

#: The profile's names of architectures, by the image-spec's.
_ARCHITECTURES = {"386": "x86"}
_NATIVE = {
    "amd64": "SCMP_ARCH_X86_64",
    "386": "SCMP_ARCH_X86",
    "arm64": "SCMP_ARCH_AARCH64",
    "arm": "SCMP_ARCH_ARM",
    "riscv64": "SCMP_ARCH_RISCV64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "s390x": "SCMP_ARCH_S390X",
}
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9_]{1,20}\Z")
_VERSION = re.compile(r"\d{1,5}\.\d{1,5}\Z")

LIMIT = 4 << 20


class Argument(msgspec.Struct, frozen=True, rename="camel"):
    index: int
    value: int
    op: str
    value_two: int = 0


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """When an entry applies (``includes``) or does not (``excludes``)."""

    caps: list[str] = []
    arches: list[str] = []
    min_kernel: str = ""


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    action: str
    names: list[str] = []
    name: str = ""
    errno_ret: int | None = None
    args: list[Argument] | None = None
    includes: Condition = Condition()
    excludes: Condition = Condition()

    @property
    def all_names(self) -> list[str]:
        return self.names or [self.name]


class Architecture(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class Profile(msgspec.Struct, frozen=True, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    arch_map: list[Architecture] | None = None
    architectures: list[str] | None = None
    syscalls: list[Entry] | None = None


class Rule(NamedTuple):
    """One call to seccomp_rule_add(3); ``args`` must all hold."""

    syscall: str
    action: int
    args: tuple[Argument, ...] = ()


class Rules(NamedTuple):
    """A profile reduced to one workload on one host."""

    default: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    #: Every system call the profile names, whether or not its entry applies here.
    named: tuple[str, ...]


def parse(text: str, where: str) -> Profile:
    """A profile from its JSON text; InvalidDocument lists every fault."""
    hint = "it must be a profile in Docker's JSON form; configs/seccomp.json is one"
    if len(text) > LIMIT:
        raise InvalidDocument(where, [f"larger than {LIMIT} bytes"], hint)
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidDocument(where, [str(error)], hint) from None
    faults = _faults(profile)
    if faults:
        raise InvalidDocument(where, faults, hint)
    return profile


def _faults(profile: Profile) -> list[str]:
    faults = _action_faults("defaultAction", profile.default_action, profile.default_errno_ret)
    if profile.arch_map and profile.architectures:
        faults.append("archMap and architectures exclude each other")
    for name in _all_architectures(profile):
        if not _ARCHITECTURE.match(name):
            faults.append(f"{name!r:.60}: no such architecture")
    for number, entry in enumerate(profile.syscalls or []):
        faults += _entry_faults(f"syscalls[{number}]", entry)
    return faults


def _all_architectures(profile: Profile) -> list[str]:
    names = list(profile.architectures or [])
    for item in profile.arch_map or []:
        names += [item.architecture, *(item.sub_architectures or [])]
    return names


def _action_faults(place: str, action: str, number: int | None) -> list[str]:
    if action == "SCMP_ACT_NOTIFY":
        return [f"{place}: SCMP_ACT_NOTIFY needs a listener, which vmm does not offer"]
    if action not in ACTIONS:
        return [f"{place}: no such action {action!r:.60}"]
    if number is not None and not 0 <= number <= 4095:
        return [f"{place}: error number {number} is not from 0 to 4095"]
    return []


def _entry_faults(place: str, entry: Entry) -> list[str]:
    faults = _action_faults(place, entry.action, entry.errno_ret)
    if bool(entry.names) == bool(entry.name):
        faults.append(f"{place}: must have either names or name")
    elif not all(entry.all_names):
        faults.append(f"{place}: an empty name")
    for argument in entry.args or []:
        if argument.op not in COMPARISONS:
            faults.append(f"{place}: no such comparison {argument.op!r:.60}")
        if not 0 <= argument.index <= 5:
            faults.append(f"{place}: argument index {argument.index} is not from 0 to 5")
        if not (0 <= argument.value < 1 << 64 and 0 <= argument.value_two < 1 << 64):
            faults.append(f"{place}: an argument's value is not from 0 to 2^64-1")
    for condition in (entry.includes, entry.excludes):
        faults += [
            f"{place}: no such capability {name!r:.60}"
            for name in condition.caps
            if name.upper().removeprefix("CAP_") not in BIT
        ]
        if condition.min_kernel and not _VERSION.match(condition.min_kernel):
            faults.append(f"{place}: minKernel {condition.min_kernel!r:.60} is not like 4.8")
    return faults


def reduce(profile: Profile, capabilities: int, facts: HostFacts) -> Rules:
    """The rules for a workload with these capabilities (its bounding set) on this host."""
    rules: list[Rule] = []
    named: dict[str, None] = {}
    for entry in profile.syscalls or []:
        named.update(dict.fromkeys(entry.all_names))
        if not _applies(entry, capabilities, facts):
            continue
        action = _value(entry.action, entry.errno_ret)
        for name in entry.all_names:
            rules += [Rule(name, action, args) for args in _alternatives(entry.args or [])]
    default = _value(profile.default_action, profile.default_errno_ret)
    return Rules(default, _architectures(profile, facts), tuple(rules), tuple(named))


def _value(action: str, number: int | None) -> int:
    base = ACTIONS[action]
    return base | (1 if number is None else number) if action in _WITH_NUMBER else base


def _alternatives(args: list[Argument]) -> list[tuple[Argument, ...]]:
    """libseccomp compares an argument once per rule: repeated indexes become rules of their
    own, any of which may hold (as Docker's runtime does)."""
    if len({argument.index for argument in args}) < len(args):
        return [(argument,) for argument in args]
    return [tuple(args)]


def _applies(entry: Entry, capabilities: int, facts: HostFacts) -> bool:
    architecture = _ARCHITECTURES.get(facts.architecture, facts.architecture)
    inc, exc = entry.includes, entry.excludes
    if (inc.arches and architecture not in inc.arches) or architecture in exc.arches:
        return False
    if inc.min_kernel and facts.kernel < _version(inc.min_kernel):
        return False
    if exc.min_kernel and facts.kernel >= _version(exc.min_kernel):
        return False
    return all(_held(name, capabilities) for name in inc.caps) and not any(
        _held(name, capabilities) for name in exc.caps
    )


def _held(name: str, capabilities: int) -> bool:
    return bool(BIT[name.upper().removeprefix("CAP_")] & capabilities)


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _architectures(profile: Profile, facts: HostFacts) -> tuple[str, ...]:
    """The native architecture first, then those whose programs it also runs."""
    native = _NATIVE.get(facts.architecture, "")
    for item in profile.arch_map or []:
        if item.architecture == native:
            return (native, *(item.sub_architectures or []))
    others = [name for name in profile.architectures or [] if name != native]
    return (native, *others)
