"""Hosts and guests that the tests of this directory start from."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.unit.container import samples
from vmm.backends.libvirt.metadata import decode
from vmm.model.backend import (
    CgroupHierarchy,
    CompileInput,
    Endpoint,
    HostFacts,
    Hypervisor,
    ResolvedMount,
    RootLayout,
)
from vmm.model.errors import HostError, Unsupported
from vmm.model.spec import WorkloadSpec

ID = samples.ID
UUID = "01234567-89ab-cdef-0123-456789abcdef"

HYPERVISOR = Hypervisor(
    uri="qemu:///system",
    accelerator="tcg",
    emulator="/usr/bin/qemu-system-x86_64",
    machine="pc-q35-7.2",
    uid=64055,
    gid=64055,
    virtiofsd="/usr/lib/qemu/virtiofsd",
    version=9_000_000,
    emulator_version=7_002_000,
    control=("/usr/bin/python3", "-I", "/usr/lib/vmm/control.py"),
)
GROUPS = CgroupHierarchy(version=1, controllers=("cpu",), mountpoint="/sys/fs/cgroup/cpu")
HOST = HostFacts(
    kernel=(6, 1),
    cpus=4,
    cgroups=(GROUPS,),
    cpuset_cpus="0-3",
    memory=8 << 30,
    hypervisor=HYPERVISOR,
)
SESSION = msgspec.structs.replace(
    HOST,
    cgroups=(),
    hypervisor=msgspec.structs.replace(
        HYPERVISOR,
        uri="qemu:///session?socket=/run/user/1000/libvirt/libvirt-sock",
        uid=1000,
        gid=1000,
        virtiofsd="",
        session=True,
    ),
)
PATHS = samples.PATHS
LAYOUT = RootLayout(
    driver="disk",
    path="/var/lib/vmm/guest/c3.erofs",
    disk="/var/lib/vmm/workloads/w/disk.raw",
    filesystem="erofs",
    kernel="/var/lib/vmm/kernels/6.1/vmlinuz",
    initrd="/var/lib/vmm/kernels/6.1/initrd",
)
END = Endpoint(
    bridge="vmm0",
    link="v0123456789ab",
    address="172.17.0.2",
    prefix=20,
    gateway="172.17.0.1",
    mac="02:42:ac:11:00:02",
)
BIND = ResolvedMount(kind="bind", target="/data", source="/srv/data")


def spec(**values: Any) -> WorkloadSpec:
    """A workload running ``/bin/sh``, with what the test is about."""
    return samples.spec(**{"backend": "qemu", **values})


def compile_input(workload: WorkloadSpec, host: HostFacts = HOST, **values: Any) -> CompileInput:
    return samples.compile_input(workload, host, **{"root": LAYOUT, **values})


class RecordedLibvirt:
    """A Libvirt that answers from what a real one said, and remembers what it was asked."""

    uri = "qemu:///system"

    def __init__(self, capabilities: str = "", domains: dict[str, str] | None = None) -> None:
        self.said = capabilities
        self.domain_types = domains or {}
        self.calls: list[tuple[object, ...]] = []
        self.documents: list[str] = []
        self.sizes = (0, 0)
        self.cpus = 1
        self.down: HostError | None = None

    def version(self) -> int:
        if self.down:
            raise self.down
        return 9_000_000

    def emulator_version(self) -> int:
        return 7_002_000

    def capabilities(self) -> str:
        self.calls.append(("capabilities",))
        return self.said

    def domain_capabilities(self, architecture: str, machine: str, kind: str) -> str:
        self.calls.append(("domain_capabilities", architecture, machine, kind))
        if kind not in self.domain_types:
            raise Unsupported(f"libvirt has no {kind} guests here: KVM is not supported")
        return self.domain_types[kind]

    def define(self, document: str) -> None:
        self.calls.append(("define", document))

    def undefine(self, uuid: str) -> None:
        self.calls.append(("undefine", uuid))

    def destroy(self, uuid: str) -> None:
        self.calls.append(("destroy", uuid))

    def active(self, uuid: str) -> bool:
        return self.sizes[0] > 0

    def metadata(self) -> list[str]:
        return self.documents

    def memory(self, uuid: str) -> tuple[int, int]:
        return self.sizes

    def set_memory(self, uuid: str, kib: int) -> None:
        self.calls.append(("set_memory", uuid, kib))

    def processors(self, uuid: str) -> int:
        return self.cpus

    def recorded(self, uuid: str) -> str:
        return next((text for text in self.documents if decode(text, "vmm")), "")

    def console(self, uuid: str) -> str:
        return ""

    def tune(self, uuid: str, parameters: dict[str, int]) -> None:
        self.calls.append(("tune", uuid, parameters))

    def pin(self, uuid: str, cpus: tuple[bool, ...]) -> None:
        self.calls.append(("pin", uuid, cpus))
