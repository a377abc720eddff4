"""The device list of cgroup2: a BPF program that answers each access (bpf(2)).

The kernel runs it with a struct bpf_cgroup_dev_ctx (linux/bpf.h) and reads its answer from r0:
1 allows, 0 is EPERM.  It decides as the devices controller of v1 does: an access is allowed when
one rule covers all of it, rules for the same node counting together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from vmm.backends.linux.devices import Rule

#: linux/bpf.h, struct bpf_insn: code, registers (source << 4 | destination), offset, immediate.
_INSTRUCTION = struct.Struct("=BBhi")

# linux/bpf_common.h, linux/bpf.h
_LOAD_32 = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_MOVE, _MOVE_REGISTER = 0xB7, 0xBF  # BPF_ALU64 | BPF_MOV | BPF_K, BPF_X
_AND = 0x57  # BPF_ALU64 | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x77  # BPF_ALU64 | BPF_RSH | BPF_K
_JUMP_UNEQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_EXIT = 0x95  # BPF_JMP | BPF_EXIT

# struct bpf_cgroup_dev_ctx: access << 16 | type, then the numbers.
_ACCESS_AT, _MAJOR_AT, _MINOR_AT = 0, 4, 8
_TYPES = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESSES = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_ALL = 7

_ANSWER, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR, _SPARE = range(7)

_Instruction = tuple[int, int, int, int]


def program(rules: Iterable[Rule]) -> bytes:
    """The struct bpf_insn[] that allows what ``rules`` do, and nothing else."""
    code = _arguments()
    for rule, mask in _together(rules).items():
        code += _allow(*rule, mask)
    code += _answer(0)
    return b"".join(
        _INSTRUCTION.pack(operation, registers, offset, value)
        for operation, registers, offset, value in code
    )


def _together(rules: Iterable[Rule]) -> dict[tuple[str, int, int], int]:
    """The accesses of each node or range, from all its rules."""
    masks: dict[tuple[str, int, int], int] = {}
    for rule in rules:
        key = (rule.type, rule.major, rule.minor)
        for permission in rule.permissions:
            masks[key] = masks.get(key, 0) | _ACCESSES[permission]
    return masks


def _arguments() -> list[_Instruction]:
    """Take the context apart into registers."""
    return [
        _load(_TYPE, _ACCESS_AT),
        _load(_ACCESS, _ACCESS_AT),
        _load(_MAJOR, _MAJOR_AT),
        _load(_MINOR, _MINOR_AT),
        (_AND, _TYPE, 0, 0xFFFF),
        (_SHIFT_RIGHT, _ACCESS, 0, 16),
    ]


def _load(register: int, at: int) -> _Instruction:
    return (_LOAD_32, _CONTEXT << 4 | register, at, 0)


def _allow(kind: str, major: int, minor: int, mask: int) -> list[_Instruction]:
    """Answer 1 if this rule covers the access, else go on behind."""
    code = [_unless(_TYPE, _TYPES[kind])]
    if mask != _ALL:
        code += [(_MOVE_REGISTER, _ACCESS << 4 | _SPARE, 0, 0), (_AND, _SPARE, 0, _ALL & ~mask)]
        code.append(_unless(_SPARE, 0))
    code += [_unless(register, n) for register, n in ((_MAJOR, major), (_MINOR, minor)) if n >= 0]
    code += _answer(1)
    return [_aimed(instruction, len(code) - at - 1) for at, instruction in enumerate(code)]


def _unless(register: int, value: int) -> _Instruction:
    """Leave this rule when the register holds anything else; aimed once its end is known."""
    return (_JUMP_UNEQUAL, register, 0, value)


def _aimed(instruction: _Instruction, offset: int) -> _Instruction:
    code, registers, _, value = instruction
    return (code, registers, offset, value) if code == _JUMP_UNEQUAL else instruction


def _answer(value: int) -> list[_Instruction]:
    return [(_MOVE, _ANSWER, 0, value), (_EXIT, 0, 0, 0)]
