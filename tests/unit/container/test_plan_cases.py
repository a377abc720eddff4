"""Golden launch plans: a spec in ``NAME.json`` and its plan in ``NAME.txt``.

``VMM_UPDATE_CASES=1 pytest tests/unit/container`` writes the plans anew; read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.container.samples import HOSTS, compile_input, spec
from vmm.backends.container import ContainerBackend
from vmm.model.backend import Endpoint, ResolvedDevice, ResolvedMount, RootLayout, User
from vmm.model.spec import WorkloadSpec

CASES = Path(__file__).parents[2] / "cases" / "container"


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """What differs from tests/unit/container/samples.py; ``host`` is one of its HOSTS."""

    about: str
    host: str = "hybrid"
    spec: dict[str, Any] = {}
    root: RootLayout | None = None
    user: User = User()
    mounts: tuple[ResolvedMount, ...] = ()
    devices: tuple[ResolvedDevice, ...] = ()
    endpoint: Endpoint | None = None
    seccomp: str = ""
    reaper: tuple[str, ...] = ()
    relay: tuple[str, ...] = ()
    boot_id: str = ""


def render(case: Case) -> str:
    workload = msgspec.convert({**msgspec.to_builtins(spec()), **case.spec}, WorkloadSpec)
    names = ("user", "mounts", "devices", "endpoint", "reaper", "relay", "boot_id")
    values = {name: getattr(case, name) for name in names}
    if case.root:
        values["root"] = case.root
    backend, host = ContainerBackend(), HOSTS[case.host]
    backend.check(workload, host)
    given = compile_input(workload, host, seccomp=case.seccomp.encode(), **values)
    return backend.compile(given).render()


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_plan(path: Path) -> None:
    found = render(msgspec.json.decode(path.read_bytes(), type=Case))
    expected = path.with_suffix(".txt")
    if os.environ.get("VMM_UPDATE_CASES"):
        expected.write_text(found)
    assert found == expected.read_text()


def test_every_plan_has_its_case() -> None:
    stems = [{path.stem for path in CASES.glob(f"*.{kind}")} for kind in ("json", "txt")]
    assert stems[0] == stems[1] != set()
