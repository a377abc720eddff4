"""Hosts and workloads that the tests of this directory start from."""

from __future__ import annotations

from typing import Any

from vmm.backends.linux.capabilities import ALL, BIT
from vmm.model.backend import CgroupHierarchy, CompileInput, HostFacts, RootLayout, WorkloadPaths
from vmm.model.spec import Process, WorkloadSpec

ID = "0123456789abcdef" * 4


def v1(*names: str) -> CgroupHierarchy:
    joined = ",".join(names)
    return CgroupHierarchy(version=1, controllers=names, mountpoint=f"/sys/fs/cgroup/{joined}")


def v2(*names: str, at: str = "/sys/fs/cgroup") -> CgroupHierarchy:
    return CgroupHierarchy(version=2, controllers=names, mountpoint=at)


_ONE_EACH = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")

#: Every controller of v1 alone, and a cgroup2 with nothing of use; no CAP_SYS_RESOURCE.
HOST = HostFacts(
    kernel=(6, 18),
    cpus=2,
    cap_bounding=ALL & ~BIT["SYS_RESOURCE"],
    rlimits={"nofile": 20000, "nproc": 96365, "core": -1},
    cgroups=(*map(v1, _ONE_EACH), v1("name=systemd"), v2("hugetlb", at="/sys/fs/cgroup/unified")),
    can_raise_limits=False,
    cpuset_cpus="0-1",
)
#: As systemd mounts v1.
HOST_V1 = HostFacts(
    kernel=(5, 15),
    cpus=4,
    cap_bounding=ALL,
    cgroups=(
        v1("name=systemd"),
        v1("cpu", "cpuacct"),
        v1("cpuset"),
        v1("memory"),
        v1("devices"),
        v1("freezer"),
        v1("pids"),
    ),
    cpuset_cpus="0-3",
)
HOST_V2 = HostFacts(
    kernel=(6, 1),
    cpus=2,
    cap_bounding=ALL,
    cgroups=(v2("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"),),
    cpuset_cpus="0-1",
    device_programs=True,
)
#: v1 without a devices controller, beside a cgroup2 that has nothing of use but its programs.
HOST_HYBRID_PROGRAMS = HostFacts(
    kernel=(6, 6),
    cpus=2,
    cap_bounding=ALL,
    cgroups=(v1("memory"), v1("freezer"), v1("pids"), v2(at="/sys/fs/cgroup/unified")),
    device_programs=True,
)
#: cgroup2 of a kernel built without CONFIG_CGROUP_BPF.
HOST_V2_PLAIN = HostFacts(
    kernel=(6, 1),
    cpus=1,
    cap_bounding=ALL,
    cgroups=(v2("cpu", "io", "memory", "pids"),),
    device_programs_reason="this kernel has no BPF programs for cgroups (CONFIG_CGROUP_BPF)",
)
HOSTS = {
    "hybrid": HOST,
    "v1": HOST_V1,
    "v2": HOST_V2,
    "hybrid-programs": HOST_HYBRID_PROGRAMS,
    "v2-plain": HOST_V2_PLAIN,
    "none": HostFacts(cap_bounding=ALL),
}

PATHS = WorkloadPaths(
    directory="/var/lib/vmm/workloads/w",
    run="/run/vmm/default/0123456789ab",
    state="/var/lib/vmm/workloads/w/state.json",
    log="/var/lib/vmm/workloads/w/log.json",
    events="/var/lib/vmm/events.jsonl",
    hosts="/var/lib/vmm/workloads/w/hosts",
    hostname="/var/lib/vmm/workloads/w/hostname",
    resolv_conf="/var/lib/vmm/workloads/w/resolv.conf",
    libexec="/usr/libexec/vmm",
)
LAYOUT = RootLayout(
    driver="overlay",
    layers_dir="/var/lib/vmm/layers",
    lowers=("c3", "b2", "a1"),
    upper="/var/lib/vmm/workloads/w/upper",
    work="/var/lib/vmm/workloads/w/work",
)


def spec(**values: Any) -> WorkloadSpec:
    """A workload running ``/bin/sh``, with what the test is about."""
    given: dict[str, Any] = {
        "id": ID,
        "name": "web",
        "backend": "container",
        "image": "docker.io/library/busybox:latest",
        "image_id": "sha256:" + "0" * 64,
        "created": 1,
        "process": Process(cmd=("/bin/sh",)),
    }
    return WorkloadSpec(**{**given, **values})


def compile_input(workload: WorkloadSpec, host: HostFacts = HOST, **values: Any) -> CompileInput:
    given: dict[str, Any] = {"root": LAYOUT, "paths": PATHS, "cgroup_parent": "vmm"}
    return CompileInput(spec=workload, host=host, **{**given, **values})
