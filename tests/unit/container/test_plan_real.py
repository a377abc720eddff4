"""Compiled plans carried out by the native core on a busybox root, looked at from inside.

Each point of the isolation check list has its test here or in tests/unit/native.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmm.backends.container import ContainerBackend
from vmm.model.backend import (
    CompileInput,
    ExecInput,
    ResolvedMount,
    RootLayout,
    User,
    WorkloadPaths,
)
from vmm.model.ids import new_id
from vmm.model.spec import Mount, Network, Process, Resources, Security, WorkloadSpec

NATIVE = Path(__file__).parents[3] / "native"
BACKEND = ContainerBackend()
DEFAULT_CAPS = "00000000a80425fb"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root")


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vmm-launch, built from this checkout."""
    build = tmp_path_factory.mktemp("native")
    make = ["make", "-s", "-C", str(NATIVE), f"BUILD={build}", f"{build}/vmm-launch"]
    subprocess.run(make, check=True, timeout=55)
    return build / "vmm-launch"


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer ``bb`` with busybox alone."""
    path = tmp_path_factory.mktemp("layers")
    root = path / "bb"
    for name in ("bin", "etc", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in [
        "sh",
        "cat",
        "id",
        "ls",
        "grep",
        "mount",
        "mknod",
        "hostname",
        "head",
        "tail",
        "mkdir",
        "touch",
        "chroot",
        "env",
    ]:
        (root / "bin" / name).symlink_to("busybox")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    return path


class Lab:
    """Compiles and launches workloads that share one writable layer."""

    def __init__(self, launcher: Path, layers: Path, directory: Path) -> None:
        self.launcher, self.layers, self.directory = launcher, layers, directory
        self.parent = f"vmmtest-{uuid.uuid4().hex[:8]}"
        self.facts = BACKEND.facts()
        for name in ("upper", "work", "run"):
            (directory / name).mkdir()
        for name in ("hosts", "hostname", "resolv.conf"):
            (directory / name).write_text(f"this is {name}\n")

    def given(self, spec: WorkloadSpec, user: User) -> CompileInput:
        at = str(self.directory)
        BACKEND.check(spec, self.facts)
        return CompileInput(
            spec=spec,
            root=RootLayout(
                driver="overlay",
                layers_dir=str(self.layers),
                lowers=("bb",),
                upper=f"{at}/upper",
                work=f"{at}/work",
            ),
            host=self.facts,
            paths=WorkloadPaths(
                directory=at,
                run=f"{at}/run",
                state=f"{at}/state.json",
                log=f"{at}/log",
                events=f"{at}/events",
                hosts=f"{at}/hosts",
                hostname=f"{at}/hostname",
                resolv_conf=f"{at}/resolv.conf",
                libexec="",
            ),
            cgroup_parent=self.parent,
            user=user,
            devices=BACKEND.devices(spec),
            mounts=tuple(_settled(mount) for mount in spec.mounts),
            seccomp=BACKEND.filter(spec, self.facts, f"{at}/cache"),
        )

    def run(
        self, script: str, user: User | None = None, **values: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside; the workload has no network unless ``values`` say so."""
        given: dict[str, Any] = {
            "process": Process(cmd=("sh", "-c", script)),
            "network": Network(mode="none"),
        }
        spec = WorkloadSpec(
            id=new_id(),
            name="t",
            backend="container",
            image="bb",
            image_id="",
            created=1,
            **{**given, **values},
        )
        plan = self.directory / "plan"
        plan.write_bytes(BACKEND.compile(self.given(spec, user or User())).encode())
        argv = [str(self.launcher), str(plan)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    def groups(self) -> list[str]:
        """What exists below the hierarchies under this test's parent."""
        found = [Path(h.mountpoint) / self.parent for h in self.facts.cgroups]
        return [str(path) for path in found if path.exists()]

    def execute(self, request: ExecInput, **values: Any) -> subprocess.CompletedProcess[str]:
        """Run ``request`` in a workload that sleeps; the launcher kills that afterwards."""
        spec = WorkloadSpec(
            id=new_id(),
            name="t",
            backend="container",
            image="bb",
            image_id="",
            created=1,
            process=Process(cmd=("/bin/busybox", "sleep", "60"), env=("FROM=image",)),
            network=Network(mode="none"),
            **values,
        )
        given = self.given(spec, User())
        plan, operations = self.directory / "plan", self.directory / "operations"
        plan.write_bytes(BACKEND.compile(given).encode())
        operations.write_bytes(BACKEND.compile_exec(given, request))
        argv = [str(self.launcher), "-e", str(operations), str(plan)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def _settled(mount: Mount) -> ResolvedMount:
    return ResolvedMount(
        kind=mount.kind,
        target=mount.target,
        source=mount.source,
        read_only=mount.read_only,
        options=mount.options,
    )


@pytest.fixture
def lab(launcher: Path, layers: Path, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(launcher, layers, tmp_path)
    yield made
    assert made.groups() == []


def test_default_capabilities_filter_and_nothing_inheritable(lab: Lab) -> None:
    done = lab.run("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
    found = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert found["CapBnd"] == found["CapEff"] == found["CapPrm"] == DEFAULT_CAPS
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")


def test_another_user_holds_no_capability(lab: Lab) -> None:
    user = User(uid=1000, gid=1000, groups=(27,))
    security = Security(cap_add=("NET_ADMIN",))
    done = lab.run("id; grep -E 'Cap(Prm|Eff)' /proc/self/status", user, security=security)
    assert done.stdout.splitlines() == [
        "uid=1000 gid=1000 groups=27",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
    ]


def test_only_the_three_streams_are_open(lab: Lab) -> None:
    done = lab.run("exec ls /proc/self/fd")  # ls itself opens the directory
    assert done.stdout.split() == ["0", "1", "2", "3"]


def test_automatic_mounts_are_as_restricted_as_they_should_be(lab: Lab) -> None:
    lines = [line.split() for line in lab.run("cat /proc/mounts").stdout.splitlines()]
    options = {fields[1]: set(fields[3].split(",")) for fields in lines}
    plain = {"nosuid", "nodev", "noexec"}
    for target in ("/proc", "/sys", "/dev/shm", "/dev/mqueue"):
        assert plain <= options[target]
    for target in ("/sys", "/proc/sys", "/proc/bus", "/sys/fs/cgroup"):
        assert "ro" in options[target]
    assert {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/pts"} <= options.keys()


def test_no_hierarchy_shows_the_host(lab: Lab) -> None:
    done = lab.run("cat /proc/self/cgroup; for g in /sys/fs/cgroup/*; do cat $g/cgroup.procs; done")
    for line in done.stdout.splitlines():
        if ":" in line:
            assert line.endswith(":/")
        else:
            assert 0 < int(line) < 100
    listed = lab.run("ls /sys/fs/cgroup/*").stdout
    assert lab.parent not in listed
    assert "process_api" not in listed


def test_masked_and_read_only_paths(lab: Lab) -> None:
    script = "cat /proc/keys /proc/timer_list /proc/interrupts; ls /sys/firmware /proc/acpi"
    done = lab.run(script)
    assert [line for line in done.stdout.splitlines() if not line.startswith("/")] == [""]
    assert lab.run("echo 1 > /proc/sys/net/ipv4/ip_forward").returncode != 0
    shown = lab.run("cat /proc/keys | head -c1", security=Security(unmask=True))
    assert shown.stdout != ""


def test_the_hosts_disk_cannot_be_opened(lab: Lab) -> None:
    disk = os.stat("/").st_dev
    script = f"mknod /tmp/disk b {os.major(disk)} {os.minor(disk)} && head -c1 /tmp/disk"
    done = lab.run(script)
    assert done.stdout == ""
    assert "Operation not permitted" in done.stderr


@pytest.mark.parametrize(
    "script",
    ["mount -t tmpfs x /mnt", "busybox unshare -m true", "echo x > /sys/fs/cgroup/memory/tasks"],
)
def test_denied_by_default(lab: Lab, script: str) -> None:
    done = lab.run(script.replace("busybox", "/bin/busybox"))
    assert done.returncode != 0
    assert (
        "ermission denied" in done.stderr + done.stdout
        or "not permitted" in done.stderr
        or ("Read-only" in done.stderr)
    )


def test_privileged_has_all_of_the_host(lab: Lab) -> None:
    script = (
        "grep CapEff /proc/self/status; mount -t tmpfs x /mnt && echo mounted;"
        "mkdir /sys/fs/cgroup/memory/sub && echo made; ls /dev; echo 5 > /proc/sys/kernel/msgmni"
    )
    done = lab.run(script, security=Security(privileged=True))
    assert done.stderr == ""
    assert f"{lab.facts.cap_bounding:016x}" in done.stdout
    assert {"mounted", "made", "kmsg"} <= set(done.stdout.split())


def test_limits_are_in_force(lab: Lab) -> None:
    limits = Resources(
        memory=32 << 20, nano_cpus=5 * 10**8, cpu_shares=512, cpuset_cpus="0", pids_limit=20
    )
    script = (
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares"
        " pids/pids.max; grep Cpus_allowed_list /proc/self/status;"
        "head -c 100m /dev/zero | tail >/dev/null; for i in $(/bin/busybox seq 40); do"
        " /bin/busybox sleep 1 & done"
    )
    done = lab.run(script, resources=limits)
    shown = done.stdout.split()
    assert shown == ["33554432", "50000", "512", "20", "Cpus_allowed_list:", "0"]
    assert "Killed" in done.stderr
    assert "can't fork" in done.stderr


def test_read_only_root_with_a_writable_tmpfs(lab: Lab) -> None:
    tmpfs = (Mount(kind="tmpfs", target="/tmp", options=("size=64k", "mode=700")),)
    script = "touch /x; echo 1 >> /etc/hosts; touch /tmp/y && echo written"
    done = lab.run(script, security=Security(read_only_root=True), mounts=tmpfs)
    assert done.stdout == "written\n"
    assert done.stderr.count("Read-only file system") == 2


def test_bind_mounts_and_the_generated_files(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/file").write_text("mine\n")
    mounts = (
        Mount(kind="bind", target="/mnt", source=f"{tmp_path}/shared", read_only=True),
        Mount(kind="bind", target="/new/place", source=f"{tmp_path}/shared"),
    )
    script = "cat /mnt/file /etc/hosts /etc/resolv.conf; touch /mnt/x; touch /new/place/y"
    done = lab.run(script, mounts=mounts)
    assert done.stdout == "mine\nthis is hosts\nthis is resolv.conf\n"
    assert done.stderr.count("Read-only file system") == 1
    assert sorted(os.listdir(tmp_path / "shared")) == ["file", "y"]


def test_names_network_and_sysctls(lab: Lab) -> None:
    done = lab.run(
        "hostname; cat /proc/sys/net/core/somaxconn; cat /proc/net/dev | grep -c :; env",
        network=Network(mode="none", hostname="box"),
        sysctls={"net.core.somaxconn": "77"},
    )
    assert done.stdout.splitlines()[:3] == ["box", "77", "1"]
    assert "HOSTNAME=box" in done.stdout
    assert "VMM" not in done.stdout


def test_a_dead_workloads_processes_and_groups_are_cleaned_up(lab: Lab) -> None:
    """As after the loss of its shim: processes in the groups, nobody to remove them."""
    spec = WorkloadSpec(
        id=new_id(),
        name="lost",
        backend="container",
        image="",
        image_id="",
        created=1,
        process=Process(cmd=("x",)),
    )
    given = lab.given(spec, User())
    stray = subprocess.Popen(["/bin/sleep", "60"])
    for hierarchy in lab.facts.cgroups:
        group = Path(hierarchy.mountpoint) / lab.parent / spec.id
        if {"pids", "freezer"} & set(hierarchy.controllers):
            (group / "below").mkdir(parents=True)
            (group / "below/cgroup.procs").write_text(str(stray.pid))
        if "freezer" in hierarchy.controllers:
            (group / "below/freezer.state").write_text("FROZEN")
    BACKEND.cleanup(given)
    assert stray.wait(5) == -9
    assert lab.groups() == []
    BACKEND.cleanup(given)


def request(script: str, **values: Any) -> ExecInput:
    given: dict[str, Any] = {"env": (), "cwd": "", "user": User(), **values}
    return ExecInput(argv=("sh", "-c", script), **given)


def test_exec_is_as_confined_as_the_workload(lab: Lab) -> None:
    script = (
        "grep -E '^(Cap|Seccomp:)' /proc/self/status; cat /proc/self/cgroup; pwd;"
        "echo $FROM $MORE; mount -t tmpfs x /mnt"
    )
    done = lab.execute(request(script, env=("MORE=asked",), cwd="/tmp"))
    lines = done.stdout.splitlines()
    assert {f"CapBnd:\t{DEFAULT_CAPS}", "CapInh:\t0000000000000000", "Seccomp:\t2"} <= set(lines)
    assert lines[-2:] == ["/tmp", "image asked"]
    assert all(line.endswith(":/") for line in lines if line[0].isdigit())
    assert "ermission denied" in done.stderr


def test_exec_as_another_user_and_in_a_missing_directory(lab: Lab) -> None:
    user = User(uid=7, gid=8, home="/h")
    script = "id -u; id -g; echo $HOME; grep CapEff /proc/self/status"
    done = lab.execute(request(script, user=user))
    assert done.stdout == "7\n8\n/h\nCapEff:\t0000000000000000\n"
    missing = lab.execute(request("true", cwd="/no/such/place"))
    assert missing.returncode == 126
    assert "/no/such/place" in missing.stderr
