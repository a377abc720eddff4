"""The health check in a plan."""

from __future__ import annotations

import pytest

from tests.unit.container.samples import compile_input, spec
from vmm.backends.linux.plan import compile_exec, compile_plan
from vmm.model import human
from vmm.model.backend import ExecInput, User
from vmm.model.launch import Op
from vmm.model.spec import Health


def planned(check: Health) -> list[Op]:
    plan = compile_plan(compile_input(spec(health=check)))
    return [made for made in plan.shim if made.name == "health"]


@pytest.mark.parametrize(
    ("check", "argv"),
    [
        (Health(test=("CMD", "curl", "-f", "localhost")), ("curl", "-f", "localhost")),
        (Health(test=("CMD-SHELL", "a || b")), ("/bin/sh", "-c", "a || b")),
        (Health(test=("CMD-SHELL", "x"), shell=("/ash", "-ec")), ("/ash", "-ec", "x")),
    ],
)
def test_a_probe_is_an_exec(check: Health, argv: tuple[str, ...]) -> None:
    given = compile_input(spec(health=check))
    asked = ExecInput(argv=argv, env=(), cwd="/", user=User())
    assert planned(check)[0].args[-1] == compile_exec(given, asked)


@pytest.mark.parametrize(
    "test", [(), ("NONE",), ("CMD",), ("CMD-SHELL",), ("TCP", "80"), ("NONE", "x")]
)
def test_nothing_to_probe(test: tuple[str, ...]) -> None:
    assert planned(Health(test=test, interval=1)) == []


def test_values_of_images_are_brought_into_what_the_shim_takes() -> None:
    wild = Health(
        test=("CMD", "x"), interval=1, timeout=-5, start_period=-1, start_interval=2**80, retries=-9
    )
    numbers = planned(wild)[0].args[1:7]
    assert numbers == ("1", "30000", "0", str(2**60), "3", "30s")
    assert planned(Health(test=("CMD", "x"), retries=2**40))[0].args[5] == str(2**31 - 1)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1500, "1.5µs"),
        (500_000_000, "500ms"),
        (1_000_001, "1.000001ms"),
        (30_000_000_000, "30s"),
        (1_500_000_001, "1.500000001s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (5_430_500_000_000, "1h30m30.5s"),
    ],
)
def test_durations_are_written_as_docker_does(nanoseconds: int, text: str) -> None:
    assert human.go_duration(nanoseconds) == text
