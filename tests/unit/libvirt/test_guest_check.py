"""What a guest cannot honour is refused by name, with a way out; the rest is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.libvirt.machines import HOST, HYPERVISOR, SESSION, spec
from vmm.backends.libvirt import QemuBackend
from vmm.model.errors import VmmError
from vmm.model.spec import Device, Mount, Network, Process, Resources, Security, Ulimit

BACKEND = QemuBackend()
NO_SHARES = msgspec.structs.replace(
    HOST, hypervisor=msgspec.structs.replace(HYPERVISOR, virtiofsd="")
)
NO_GROUPS = msgspec.structs.replace(HOST, cgroups=())
SHARED = Mount(kind="bind", target="/d", source="/d", propagation="rshared")
FUSE = Device(host_path="/dev/fuse", path="/dev/fuse")

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"network": Network(mode="host")}, "--network host", "--backend container"),
    ({"resources": Resources(devices=(FUSE,))}, "--device /dev/fuse", "--backend container"),
    ({"mounts": (SHARED,)}, "mount /d", "rprivate"),
    ({"architecture": "arm64"}, "architecture arm64", "amd64"),
    ({"os": "freebsd"}, "freebsd/amd64", "linux"),
    ({"resources": Resources(memory=16 << 20)}, "--memory 16777216", "--memory 96m"),
    ({"resources": Resources(memory=1 << 40)}, "--memory", "give less"),
    ({"resources": Resources(memory=1 << 28, memory_swap=-1)}, "--memory-swap", "container"),
    ({"resources": Resources(nano_cpus=9 * 10**9)}, "--cpus 9", "0.01 to 4"),
    ({"resources": Resources(cpuset_cpus="7")}, "--cpuset-cpus 7", "among these"),
    ({"resources": Resources(cpuset_cpus="x")}, "--cpuset-cpus", "0-2"),
    ({"security": Security(cap_add=("FLY",))}, "--cap-add FLY", "capabilities(7)"),
    ({"sysctls": {"kernel": "1"}}, "--sysctl kernel", "net.core"),
    ({"mounts": (Mount(kind="tmpfs", target="/proc/x"),)}, "backend qemu keeps /proc", ""),
]


@pytest.mark.parametrize(("values", "named", "way_out"), REFUSED, ids=lambda v: str(v)[:30])
def test_refused(values: dict[str, Any], named: str, way_out: str) -> None:
    with pytest.raises(VmmError) as caught:
        BACKEND.check(spec(**values), HOST)
    assert named in caught.value.message and way_out in caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"security": Security(privileged=True)},
        {"security": Security(read_only_root=True, cap_add=("ALL",), seccomp="unconfined")},
        {"sysctls": {"vm.swappiness": "1", "kernel.pid_max": "4096", "net.core.somaxconn": "9"}},
        {"resources": Resources(ulimits=(Ulimit(name="nofile", soft=1 << 20, hard=1 << 20),))},
        {"resources": Resources(pids_limit=9, nano_cpus=10**9, cpu_shares=2, cpuset_cpus="1,3")},
        {"resources": Resources(memory=1 << 28, memory_swap=1 << 28)},
        {"architecture": "386"},
        {"process": Process(cmd=("/bin/sh",), tty=True), "init": True},
    ],
    ids=lambda values: str(values)[:40],
)
def test_honoured(values: dict[str, Any]) -> None:
    BACKEND.check(spec(**values), HOST)


def test_volumes_need_virtiofs() -> None:
    workload = spec(mounts=(Mount(kind="volume", target="/d", source="v"),))
    BACKEND.check(workload, HOST)
    with pytest.raises(VmmError, match="no virtiofsd"):
        BACKEND.check(workload, NO_SHARES)


@pytest.mark.parametrize(
    ("values", "named", "way_out"),
    [
        ({"resources": Resources(nano_cpus=15 * 10**8)}, "--cpus 1.5", "--cpus 2"),
        ({"resources": Resources(nano_cpus=5 * 10**8)}, "--cpus 0.5", "--cpus 1"),
        ({"resources": Resources(cpu_shares=512)}, "--cpu-shares 512", "--backend container"),
    ],
)
def test_parts_of_a_cpu_need_control_groups(
    values: dict[str, Any], named: str, way_out: str
) -> None:
    BACKEND.check(spec(**values), HOST)
    for host, why in ((NO_GROUPS, "controller cpu"), (SESSION, "a session of libvirt")):
        with pytest.raises(VmmError) as caught:
            BACKEND.check(spec(**values), host)
        assert named in caught.value.message and why in caught.value.message
        assert way_out in caught.value.hint
        BACKEND.check(spec(resources=Resources(nano_cpus=2 * 10**9, cpuset_cpus="1")), host)


def test_a_session_shares_no_files() -> None:
    workload = spec(mounts=(Mount(kind="volume", target="/d", source="v"),))
    with pytest.raises(VmmError, match="a session of libvirt") as caught:
        BACKEND.check(workload, SESSION)
    assert "vmm cp" in caught.value.hint
    BACKEND.check(spec(mounts=(Mount(kind="tmpfs", target="/t"),)), SESSION)


def test_no_device_of_the_host_is_inside() -> None:
    assert BACKEND.devices(spec(security=Security(privileged=True))) == ()
