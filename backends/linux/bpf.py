"""A reduced profile compiled by libseccomp to BPF bytes.

Numbers above the highest system call that libseccomp knows are answered with ENOSYS, not the
profile's error: programs then fall back to older calls, as they would on an older kernel.
libseccomp cannot say this, so instructions are put before its own.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from vmm.backends.linux.profile import ACTIONS, COMPARISONS, MASKED, Rule, Rules
from vmm.model.errors import HostError

#: linux/bpf_common.h: the most instructions a filter may have (BPF_MAXINSNS).
INSTRUCTIONS_MAX = 4096
#: More would exceed that, and libseccomp's time grows with the square.
RULES_MAX = 8192

_INSTRUCTION = struct.Struct("=HBBI")
# seccomp_attr_set(3)
_BAD_ARCHITECTURE, _OPTIMIZE = 2, 8
_BINARY_TREE = 2
_ENOSYS = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS

# linux/filter.h, struct seccomp_data of seccomp(2)
_LOAD, _JUMP_EQ, _JUMP_GT, _JUMP_GE, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_X32_BIT = 0x40000000

#: Architectures whose numbers are one sequence up to the newest; others have private ranges.
_SEQUENTIAL = frozenset(
    f"SCMP_ARCH_{name}"
    for name in ["X86_64", "X86", "AARCH64", "RISCV64", "PPC64LE", "S390X", "S390"]
)
#: The newest calls by release; since Linux 5.1 they have the same number everywhere.
_NEWEST = [
    "faccessat2",
    "process_madvise",
    "epoll_pwait2",
    "mount_setattr",
    "quotactl_fd",
    "landlock_restrict_self",
    "memfd_secret",
    "process_mrelease",
    "futex_waitv",
    "set_mempolicy_home_node",
    "cachestat",
    "fchmodat2",
    "map_shadow_stack",
    "futex_wake",
    "futex_wait",
    "futex_requeue",
    "statmount",
    "listmount",
    "lsm_get_self_attr",
    "lsm_set_self_attr",
    "lsm_list_modules",
    "mseal",
    "setxattrat",
    "getxattrat",
    "listxattrat",
    "removexattrat",
    "open_tree_attr",
    "file_getattr",
    "file_setattr",
    "listns",
]


def build(rules: Rules) -> bytes:
    """Compile with libseccomp and put the ENOSYS check in front."""
    from vmm.ports.kernel import lib

    if len(rules.rules) > RULES_MAX:
        raise HostError(
            f"seccomp profile: {len(rules.rules)} rules, at most {RULES_MAX} can be compiled",
            "give a profile with fewer rules",
        )
    context = lib.seccomp_init(rules.default)
    if not context:
        raise HostError("libseccomp: cannot make a filter")
    try:
        tokens = _add_architectures(lib, context, rules.architectures)
        _check(lib.seccomp_attr_set(context, _BAD_ARCHITECTURE, _ENOSYS), "bad architecture")
        lib.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE)  # from 2.5; only faster
        for rule in rules.rules:
            if rule.action != rules.default:
                _add(lib, context, rule)
        program = _export(lib, context)
    finally:
        lib.seccomp_release(context)
    highest = max(map(_number, (*rules.named, *_NEWEST)))
    whole = _unknown_calls(tokens, highest) + program
    if len(whole) > INSTRUCTIONS_MAX * _INSTRUCTION.size:
        raise HostError(
            f"seccomp profile: {len(whole) // _INSTRUCTION.size} instructions, "
            f"the kernel takes {INSTRUCTIONS_MAX}",
            "give a profile with fewer rules",
        )
    return whole


def _number(name: str) -> int:
    """The native number of a system call; negative when libseccomp or the machine has none."""
    from vmm.ports.kernel import lib

    return int(lib.seccomp_syscall_resolve_name(name.encode("utf-8", "replace")))


def _check(result: int, what: str) -> None:
    if result < 0:
        raise HostError(f"libseccomp: {what}: {os.strerror(-result)}")


def _add_architectures(lib: Any, context: Any, names: tuple[str, ...]) -> dict[str, int]:
    """Add all but the native one, which is there; their AUDIT_ARCH numbers by name."""
    tokens = {names[0]: int(lib.seccomp_arch_native())}
    for name in names[1:]:
        short = name.removeprefix("SCMP_ARCH_").lower()
        token = int(lib.seccomp_arch_resolve_name(short.encode()))
        if not token:
            raise HostError(f"seccomp profile: libseccomp does not know {name}")
        tokens[name] = token
        result = lib.seccomp_arch_add(context, token)
        if result != -errno.EEXIST:
            _check(result, f"architecture {name}")
    return tokens


def _add(lib: Any, context: Any, rule: Rule) -> None:
    """Add a rule; a call that libseccomp does not know is none that could be allowed."""
    from vmm.ports.kernel import ffi

    number = _number(rule.syscall)
    if number == -1:
        return
    compare = ffi.new("struct scmp_arg_cmp[]", max(1, len(rule.args)))
    for index, argument in enumerate(rule.args):
        compare[index].arg = argument.index
        compare[index].op = COMPARISONS[argument.op]
        compare[index].datum_a = argument.value
        masked = COMPARISONS[argument.op] == MASKED
        compare[index].datum_b = argument.value_two if masked else 0
    result = lib.seccomp_rule_add_array(context, rule.action, number, len(rule.args), compare)
    _check(result, f"rule for {rule.syscall}")


def _export(lib: Any, context: Any) -> bytes:
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(lib.seccomp_export_bpf(context, descriptor), "export")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _unknown_calls(tokens: dict[str, int], highest: int) -> bytes:
    """Instructions that return ENOSYS for numbers above ``highest``, and else go on."""
    x32 = "SCMP_ARCH_X32" in tokens
    out = []
    for name, token in tokens.items():
        if name not in _SEQUENTIAL:
            continue
        body = [(_LOAD, 0, 0, _NUMBER_AT)]
        if name == "SCMP_ARCH_X86_64" and x32:
            body.append((_JUMP_GE, 2, 0, _X32_BIT))
        body += [(_JUMP_GT, 0, 1, highest), (_RETURN, 0, 0, _ENOSYS)]
        out += [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_EQ, 0, len(body), token), *body]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in out)
