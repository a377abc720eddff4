"""What cannot be honoured is refused, naming the option, the place and the remedy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.container.samples import (
    HOST,
    HOST_V1,
    HOST_V2,
    HOST_V2_PLAIN,
    HOSTS,
    compile_input,
    spec,
)
from vmm.backends.container import ContainerBackend
from vmm.backends.linux import capabilities, cgroups, limits
from vmm.model.backend import ExecInput, HostFacts, ResolvedMount, User
from vmm.model.errors import Unsupported, UsageError, VmmError
from vmm.model.spec import (
    Device,
    Mount,
    Network,
    Process,
    Resources,
    Security,
    Ulimit,
    WorkloadSpec,
)

MIB = 1 << 20
NONE = HOSTS["none"]
BACKEND = ContainerBackend()


def needs(**values: Any) -> WorkloadSpec:
    return spec(resources=Resources(**values))


def secured(**values: Any) -> WorkloadSpec:
    return spec(security=Security(**values))


def mounted(target: str, **values: Any) -> WorkloadSpec:
    kind = values.pop("kind", "tmpfs")
    return spec(mounts=(Mount(kind=kind, target=target, **values),))


def limit(name: str, soft: int, hard: int) -> WorkloadSpec:
    return needs(ulimits=(Ulimit(name=name, soft=soft, hard=hard),))


def sysctl(key: str, value: str = "1", mode: str = "bridge") -> WorkloadSpec:
    return spec(sysctls={key: value}, network=Network(mode=mode))


FUSE = Device(host_path="/dev/fuse", path="/dev/fuse")
SWAPLESS = msgspec.structs.replace(HOST, swap_limit=False)
UNSUPPORTED = [
    (needs(memory=64 * MIB), NONE, "--memory.*memory"),
    (needs(nano_cpus=10**9), NONE, "--cpus.*cpu"),
    (needs(cpu_shares=512), NONE, "--cpu-shares.*cpu"),
    (needs(cpuset_cpus="0"), NONE, "--cpuset-cpus.*cpuset"),
    (needs(pids_limit=100), NONE, "--pids-limit.*pids"),
    (needs(memory=64 * MIB, memory_swap=-1), SWAPLESS, "--memory-swap"),
    (needs(nano_cpus=3 * 10**9), HOST, "--cpus 3: this host has 2"),
    (needs(cpuset_cpus="0,7"), HOST, "--cpuset-cpus 0,7: this host has CPUs 0-1"),
    (needs(devices=(FUSE,)), HOST_V2_PLAIN, "/dev/fuse.*CONFIG_CGROUP_BPF"),
    (needs(devices=(FUSE,)), NONE, "/dev/fuse.*no devices controller"),
    (secured(cap_add=("MKNOD",)), HOST_V2_PLAIN, "--cap-add MKNOD"),
    (needs(cpuset_cpus="0"), HOST_V2_PLAIN, "--cpuset-cpus.*cpuset"),
    (secured(cap_add=("SYS_RESOURCE",)), HOST, "--cap-add SYS_RESOURCE.*bounding"),
    (secured(cap_add=("CAP_NOTHING",)), HOST, "--cap-add CAP_NOTHING"),
    (secured(cap_drop=("x",)), HOST, "--cap-drop x"),
    (limit("nofile", 1024, 30000), HOST, "--ulimit nofile=1024:30000.*20000"),
    (limit("nproc", -1, -1), HOST, "--ulimit nproc=-1:-1.*96365"),
    (sysctl("kernel.panic"), HOST, "kernel.panic.*whole host"),
    (sysctl("vm.overcommit_memory"), HOST, "vm.overcommit_memory"),
    (sysctl("kernel.hostname", "x"), HOST, "kernel.hostname"),
    (sysctl("net.core.somaxconn", mode="host"), HOST, "host's network"),
    (mounted("/proc"), HOST, "/proc"),
    (mounted("/proc/../proc/sys"), HOST, "/proc"),
    (spec(architecture="arm64"), HOST, "linux/arm64.*linux/amd64"),
    (spec(os="freebsd"), HOST, "freebsd/amd64"),
]
WRONG = [
    (needs(memory=MIB), "minimum"),
    (needs(memory_swap=64 * MIB), "without --memory"),
    (needs(memory=64 * MIB, memory_swap=32 * MIB), "smaller"),
    (needs(cpu_shares=1), "from 2 to 262144"),
    (needs(cpuset_cpus="a-b"), "not a list"),
    (limit("files", 1, 1), "no such limit"),
    (limit("nofile", 2048, 1024), "above the hard"),
    (limit("nofile", -1, 1024), "above the hard"),
    (sysctl("net.core.somaxconn", "1\n2"), "not a sysctl"),
    (sysctl("net/../kernel/panic"), "not a sysctl"),
    (sysctl("net..core"), "not a sysctl"),
    (mounted("/"), "other than /"),
    (mounted("relative"), "absolute"),
    (mounted("/x/.."), "other than /"),
    (mounted("/x", options=("sice=3",)), "unknown option 'sice=3'"),
    (mounted("/x", options=("size=3,context=x",)), "unknown option"),
    (mounted("/x", kind="bind", propagation="sideways"), "propagation"),
    (spec(mounts=(Mount(kind="tmpfs", target="/x"),) * 2), "Duplicate mount point: /x"),
    (spec(stop_signal="SIGNOPE"), "SIGNOPE"),
    (spec(stop_signal="99"), "99"),
]


@pytest.mark.parametrize(("workload", "host", "says"), UNSUPPORTED)
def test_unsupported(workload: WorkloadSpec, host: HostFacts, says: str) -> None:
    with pytest.raises(Unsupported, match=says) as caught:
        BACKEND.check(workload, host)
    assert caught.value.hint


@pytest.mark.parametrize(("workload", "says"), WRONG)
def test_wrong_values(workload: WorkloadSpec, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BACKEND.check(workload, HOST)


ACCEPTED = [
    spec(),
    needs(memory=64 * MIB, memory_swap=-1, nano_cpus=2 * 10**9, cpuset_cpus="0-1"),
    needs(pids_limit=-1),
    limit("nofile", 20000, 20000),
    secured(privileged=True),
    secured(cap_add=("all",), cap_drop=("cap_sys_admin",)),
    sysctl("net.ipv4.ip_forward"),
    sysctl("net.ipv4.conf.eth0/1.forwarding"),
    sysctl("kernel.shmmax", mode="host"),
    sysctl("fs.mqueue.msg_max"),
    mounted("/x", options=("size=10%", "mode=700", "uid=5", "exec", "rw")),
    spec(stop_signal="rtmin+3"),
    spec(architecture="386"),
]


def test_devices_are_accepted_where_a_program_can_limit_them() -> None:
    BACKEND.check(needs(devices=(FUSE,)), HOST_V2)
    BACKEND.check(secured(cap_add=("MKNOD",)), HOST_V2)


@pytest.mark.parametrize("workload", ACCEPTED, ids=range(len(ACCEPTED)))
def test_accepted(workload: WorkloadSpec) -> None:
    BACKEND.check(workload, HOST)


def test_no_controllers_are_needed_for_a_plain_workload() -> None:
    BACKEND.check(spec(), NONE)
    BACKEND.check(needs(pids_limit=0), NONE)


def names(security: Security, host: HostFacts = HOST) -> set[str]:
    return set(capabilities.names_of(capabilities.sets_for(security, host, 0).bounding))


def test_capabilities_follow_docker() -> None:
    default = set(capabilities.DEFAULT)
    assert names(Security()) == default
    assert names(Security(cap_add=("net_admin",), cap_drop=("CAP_CHOWN",))) == (
        default - {"CHOWN"} | {"NET_ADMIN"}
    )
    assert names(Security(cap_drop=("ALL",), cap_add=("KILL",))) == {"KILL"}
    everything = set(capabilities.NAMES) - {"SYS_RESOURCE"}
    assert names(Security(cap_add=("ALL",), cap_drop=("KILL",))) == everything - {"KILL"}
    assert names(Security(privileged=True, cap_drop=("ALL",))) == everything


def test_nothing_is_inheritable_and_other_users_hold_nothing() -> None:
    sets = capabilities.sets_for(Security(privileged=True), HOST, 1000)
    assert sets == (HOST.cap_bounding, 0, 0, 0, 0)


def test_mknod_goes_where_devices_cannot_be_limited() -> None:
    assert "MKNOD" not in names(Security(), HOST_V2_PLAIN)
    assert "MKNOD" in names(Security(privileged=True), HOST_V2_PLAIN)
    assert "MKNOD" in names(Security(), HOST_V2)
    assert "MKNOD" in names(Security(), HOST_V1)


def test_weights_meet_at_both_ends_and_in_the_middle() -> None:
    found = [cgroups.cpu_weight(shares) for shares in (2, 1024, 262_144)]
    assert found == [1, 100, 10_000]


def test_default_limits_are_clamped_silently_and_only_when_needed() -> None:
    nofile = next(u for u in limits.DEFAULTS if u.name == "nofile")
    assert limits.clamped(nofile, HOST).hard == 20000
    free = msgspec.structs.replace(HOST, can_raise_limits=True)
    assert limits.clamped(nofile, free) == nofile


def test_exec_keeps_limits_filter_and_capabilities() -> None:
    given = compile_input(
        spec(
            process=Process(cmd=("sh",), env=("A=1", "B=2")), security=Security(cap_drop=("ALL",))
        ),
        seccomp=b"12345678",
    )
    request = ExecInput(argv=("id", "-u"), env=("B=3",), cwd="", user=User(uid=7, gid=8, home="/h"))
    encoded = BACKEND.compile_exec(given, request)
    for part in (b"rlimit", b"12345678", b"caps", b"B=3", b"HOME=/h", b"must", b"-u"):
        assert part in encoded
    assert b"B=2" not in encoded
    with pytest.raises(UsageError, match="no command"):
        BACKEND.compile_exec(given, msgspec.structs.replace(request, argv=()))


def test_a_workload_without_a_command_is_refused() -> None:
    with pytest.raises(UsageError, match="no command"):
        BACKEND.compile(compile_input(spec(process=Process())))


def test_compile_is_pure() -> None:
    mount = ResolvedMount(kind="bind", target="/x", source="/does/not/exist")
    given = compile_input(spec(), mounts=(mount,))
    assert BACKEND.compile(given).encode() == BACKEND.compile(given).encode()


def test_every_error_is_a_vmm_error() -> None:
    for cap in ("", "CAP_", "\0", "é"):
        with pytest.raises(VmmError):
            BACKEND.check(secured(cap_add=(cap,)), HOST)
