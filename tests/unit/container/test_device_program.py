"""The device program decides as the devices controller of cgroup v1 does with the same rules."""

from __future__ import annotations

import os
import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.container.samples import HOST_V2, compile_input, spec
from vmm.backends.container import ContainerBackend
from vmm.backends.linux.device_program import program
from vmm.backends.linux.devices import DEFAULT_RULES, Rule, rules
from vmm.model.backend import ResolvedDevice
from vmm.model.launch import Op
from vmm.model.spec import Security
from vmm.ports.kernel import bpf_device_program

PERMISSIONS = ["m", "r", "w", "rw", "rm", "wm", "rwm"]
BITS = {"m": 1, "r": 2, "w": 4}


def decide(code: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """Run a program as the kernel does: an interpreter of the instructions it may use."""
    asked = sum(BITS[letter] for letter in access)
    context = struct.pack("=III", asked << 16 | {"b": 1, "c": 2}[kind], major, minor)
    instructions = list(struct.iter_unpack("=BBhi", code))
    registers: dict[int, int] = {}
    at = 0
    while True:
        operation, operands, offset, value = instructions[at]
        target, source = operands & 15, operands >> 4
        at += 1
        if operation == 0x95:
            return registers[0]
        if operation == 0x61:
            assert source == 1, "loads are from the context alone"
            registers[target] = int(struct.unpack_from("=I", context, offset)[0])
        elif operation == 0xB7:
            registers[target] = value
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0x57:
            registers[target] &= value
        elif operation == 0x77:
            registers[target] >>= value
        elif operation == 0x55:
            assert offset >= 0, "no loops"
            at += offset if registers[target] != value else 0
        else:
            raise AssertionError(f"instruction {operation:#x}")


def v1_allows(allowed: tuple[Rule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    """security/device_cgroup.c: dev_exception_add() and match_exception()."""
    table: dict[tuple[str, int, int], set[str]] = {}
    for rule in allowed:
        table.setdefault((rule.type, rule.major, rule.minor), set()).update(rule.permissions)
    return any(
        entry_kind == kind
        and entry_major in (-1, major)
        and entry_minor in (-1, minor)
        and set(access) <= permissions
        for (entry_kind, entry_major, entry_minor), permissions in table.items()
    )


def device(kind: str, major: int, minor: int, permissions: str) -> ResolvedDevice:
    return ResolvedDevice(
        path="/dev/x", type=kind, major=major, minor=minor, mode=0o600, permissions=permissions
    )


def test_dockers_default_list() -> None:
    code = program(DEFAULT_RULES)
    for kind, major, minor in [("c", 1, 3), ("c", 5, 2), ("c", 136, 77), ("c", 1, 9)]:
        assert decide(code, kind, major, minor, "rw") == 1
    for kind, major, minor in [("c", 1, 1), ("b", 8, 0), ("b", 1, 3), ("c", 10, 229)]:
        assert decide(code, kind, major, minor, "m") == 1
        assert [decide(code, kind, major, minor, access) for access in ("r", "w", "rw", "rm")] == [
            0
        ] * 4


def test_a_device_has_the_permissions_given() -> None:
    code = program(rules([device("b", 7, 1, "r"), device("c", 10, 229, "w")]))
    assert decide(code, "b", 7, 1, "r") == 1
    assert decide(code, "b", 7, 1, "rw") == 0
    assert decide(code, "c", 7, 1, "r") == 0
    assert decide(code, "b", 7, 2, "r") == 0
    assert decide(code, "c", 10, 229, "w") == 1


def test_rules_of_one_node_count_together() -> None:
    code = program([Rule("c", 10, 1, "r"), Rule("c", 10, 1, "w")])
    assert decide(code, "c", 10, 1, "rw") == 1
    assert decide(code, "c", 10, 1, "m") == 0


def test_nothing_is_allowed_by_no_rule() -> None:
    for kind, access in product("bc", PERMISSIONS):
        assert decide(program(()), kind, 1, 3, access) == 0


NUMBERS = st.sampled_from([-1, 0, 1, 5, 4095])
RULES = st.builds(
    Rule, st.sampled_from("bc"), NUMBERS, st.sampled_from([-1, 0, 3, 0xFFFFF]),
    st.sampled_from(PERMISSIONS),
)  # fmt: skip


@given(st.lists(RULES, max_size=6))
def test_any_list_decides_as_v1(allowed: list[Rule]) -> None:
    code = program(allowed)
    for kind, major, minor, access in product("bc", [0, 1, 5, 4095], [0, 3, 0xFFFFF], PERMISSIONS):
        expected = v1_allows(tuple(allowed), kind, major, minor, access)
        assert decide(code, kind, major, minor, access) == expected, (kind, major, minor, access)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_kernel_takes_it(count: int) -> None:
    """Its verifier follows every path of the program."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    given = [device("b", 1 + n // 256, n % 256, PERMISSIONS[n % 7]) for n in range(count)]
    os.close(bpf_device_program(program(rules(given))))


def test_the_kernel_takes_no_other() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root")
    with pytest.raises(OSError, match=r".*"):
        bpf_device_program(program(())[:-8])


def limit(**values: object) -> list[Op]:
    given = compile_input(spec(security=Security(**values)), HOST_V2)  # type: ignore[arg-type]
    return [o for o in ContainerBackend().compile(given).host if o.name == "cgroup.devices"]


def test_the_plan_carries_program_and_words() -> None:
    [found] = limit()
    assert found.args[1] == program(DEFAULT_RULES)
    assert str(found).endswith("c 5:2 rwm, c 136:* rwm'")
    assert limit(privileged=True) == []
