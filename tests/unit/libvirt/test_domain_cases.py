"""Golden guests: a spec in ``NAME.json``, its plan in ``NAME.txt``, its domain in ``NAME.xml``.

``VMM_UPDATE_CASES=1 pytest tests/unit/libvirt`` writes them anew; read the difference.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.libvirt.machines import HOST, LAYOUT, SESSION, compile_input, spec
from vmm.backends.libvirt import KvmBackend, QemuBackend
from vmm.model.backend import CgroupHierarchy, Endpoint, HostFacts, ResolvedMount, RootLayout, User
from vmm.model.launch import LaunchPlan
from vmm.model.spec import WorkloadSpec

CASES = Path(__file__).parents[2] / "cases" / "libvirt"
#: Of Debian's libvirt-daemon-common or libvirt0.
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
BACKENDS = {"kvm": KvmBackend, "qemu": QemuBackend}
HOSTS = {
    "system": HOST,
    "unified": msgspec.structs.replace(
        HOST, cgroups=(CgroupHierarchy(version=2, controllers=("cpu",), mountpoint="/c"),)
    ),
    "session": SESSION,
}


class Case(msgspec.Struct, forbid_unknown_fields=True):
    """What differs from tests/unit/libvirt/machines.py; ``host`` is one of HOSTS."""

    about: str
    backend: str = "qemu"
    host: str = "system"
    spec: dict[str, Any] = {}
    root: RootLayout = LAYOUT
    user: User = User()
    mounts: tuple[ResolvedMount, ...] = ()
    endpoint: Endpoint | None = None
    seccomp: str = ""
    reaper: tuple[str, ...] = ()
    relay: tuple[str, ...] = ()
    boot_id: str = ""
    files: dict[str, str] = {}
    guest_memory: int = 512 << 20
    adopt: bool = False
    cgroup_parent: str = "vmm"


def compiled(case: Case) -> LaunchPlan:
    plain = {**msgspec.to_builtins(spec(backend=case.backend)), **case.spec}
    workload = msgspec.convert(plain, WorkloadSpec)
    names = ("root", "user", "mounts", "endpoint", "reaper", "relay", "boot_id", "files")
    values = {name: getattr(case, name) for name in (*names, "guest_memory", "adopt")}
    host: HostFacts = HOSTS[case.host]
    backend = BACKENDS[case.backend]()
    backend.check(workload, host)
    given = compile_input(
        workload,
        host,
        seccomp=case.seccomp.encode(),
        cgroup_parent=case.cgroup_parent,
        **values,
    )
    return backend.compile(given)


def load(path: Path) -> Case:
    return msgspec.json.decode(path.read_bytes(), type=Case)


def paths() -> list[Path]:
    return sorted(CASES.glob("*.json"))


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_guest(path: Path) -> None:
    plan = compiled(load(path))
    ((name, document),) = plan.documents
    assert name == "domain.xml"
    found = {".xml": document, ".txt": plan._replace(documents=()).render()}
    for suffix, text in found.items():
        expected = path.with_suffix(suffix)
        if os.environ.get("VMM_UPDATE_CASES"):
            expected.write_bytes(text.encode())
        assert text == expected.read_bytes().decode()


def test_every_domain_is_valid_by_libvirts_own_schema() -> None:
    files = [str(path.with_suffix(".xml")) for path in paths()]
    argv = ["xmllint", "--noout", "--relaxng", str(SCHEMA), *files]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_schema_refuses_what_libvirt_does_not_know(tmp_path: Path) -> None:
    wrong = paths()[0].with_suffix(".xml").read_text().replace("<on_crash>", "<on_crush>")
    (tmp_path / "w.xml").write_text(wrong.replace("</on_crash>", "</on_crush>"))
    argv = ["xmllint", "--noout", "--relaxng", str(SCHEMA), str(tmp_path / "w.xml")]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0


def test_every_guest_has_its_case() -> None:
    kinds = ("json", "txt", "xml")
    stems = [{path.stem for path in CASES.glob(f"*.{kind}")} for kind in kinds]
    assert stems[0] == stems[1] == stems[2] != set()
