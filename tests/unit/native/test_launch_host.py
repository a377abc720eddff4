"""What is made outside: cgroups, links, namespaces; and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.native.launching import Case, allow, caps, cgroup_of, own_name
from vmm.model.launch import Op, op


def groups(*controllers: str) -> dict[str, Path]:
    return {c: cgroup_of(c) / "vmm-test" / own_name("c") for c in controllers}


@pytest.fixture
def limited(case: Case) -> Iterator[dict[str, Path]]:
    """A workload in memory and pids groups of its own (cgroup v1)."""
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("no cgroup v1")
    made = groups("memory", "pids")
    for path in made.values():
        case.host += [op("cgroup.make", str(path)), op("cgroup.join", str(path))]
    case.host += [
        op("cgroup.write", str(made["memory"] / "memory.limit_in_bytes"), str(32 << 20)),
        op("cgroup.write", str(made["pids"] / "pids.max"), "7"),
        op("cgroup.try", str(made["pids"] / "pids.nothing"), "7"),
        op("cgroup.oom", str(made["memory"] / "memory.oom_control")),
        op("cgroup.kill", str(made["pids"])),
    ]
    yield made
    left = [p for p in made.values() if p.exists() or p.parent.exists()]
    assert left == [], "the groups and their common parent are gone"


def test_limits_from_inside(case: Case, limited: dict[str, Path]) -> None:
    case.before_pivot += [
        op("mount.fs", "tmpfs", "tmpfs", "/sys/fs/cgroup", "nosuid,nodev,noexec", "mode=755"),
        op("mount.cgroup", "1", "memory", "memory"),
        op("mount.cgroup", "1", "pids", "pids"),
        op("mount.readonly", "/sys/fs/cgroup"),
    ]
    result = case.sh(
        "cd /sys/fs/cgroup; ls; cat pids/pids.max memory/memory.limit_in_bytes; "
        "grep -E 'memory|pids' /proc/self/cgroup; cat pids/tasks | wc -l; echo 1 >pids/pids.max; "
        "grep cgroup /proc/self/mountinfo; mkdir x"
    )
    lines = result.out.split("\n")
    assert lines[:4] == ["memory", "pids", "7", str(32 << 20)]
    assert all(line.endswith(":/") for line in lines[4:6]), "its own group is the root"
    assert int(lines[6]) >= 1
    assert "vmm-test" not in result.out
    assert result.err.count("Read-only file system") == 2


def test_user_may_read_its_groups(case: Case, limited: dict[str, Path]) -> None:
    case.before_pivot += [
        op("mount.fs", "tmpfs", "tmpfs", "/sys/fs/cgroup", "nosuid,nodev,noexec", "mode=755"),
        op("mount.cgroup", "1", "pids", "pids"),
    ]
    case.process = [op("user", 1000, 1000)]
    old = os.umask(0o077)
    try:
        assert case.run("cat", "/sys/fs/cgroup/pids/pids.max").out == "7\n"
    finally:
        os.umask(old)


def test_out_of_memory_is_seen(case: Case, limited: dict[str, Path]) -> None:
    result = case.sh("x=$(head -c 200000000 /dev/zero | od -v)")
    assert result.code in (137, 1, 2)
    assert "killed for lack of memory" in result.err


def test_exec_enters_the_groups(case: Case, limited: dict[str, Path]) -> None:
    result = case.exec(op("env", *case.env), op("exec", "cat", "/proc/self/cgroup"))
    rows = [line.split(":") for line in result.out.split()]
    assert {r[1]: r[2] for r in rows if r[1] in limited} == {"memory": "/", "pids": "/"}


def test_orphans_die_with_the_workload(case: Case, limited: dict[str, Path]) -> None:
    case.namespaces.remove("pid")
    assert case.sh("sleep 1000 & sleep 1001 & true").code == 0


def test_failed_writes(case: Case, limited: dict[str, Path]) -> None:
    case.host.append(op("cgroup.write", str(limited["pids"] / "pids.max"), "banana"))
    result = case.run("true")
    assert result.code == 125
    assert 'cannot write "banana" to' in result.err
    assert "Invalid argument" in result.err


def test_no_group_outside_a_hierarchy(case: Case, tmp_path: Path) -> None:
    case.host.append(op("cgroup.make", str(tmp_path / "no/group")))
    result = case.run("true")
    assert result.code == 125
    assert not (tmp_path / "no").exists()


@pytest.fixture
def outside(case: Case) -> Iterator[str]:
    """A network namespace that plays the host, with a bridge."""
    name = own_name("n")
    run = ["ip", "-n", name]
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run([*run, "link", "add", "br0", "type", "bridge"], check=True)
        subprocess.run([*run, "addr", "add", "10.99.0.1/24", "dev", "br0"], check=True)
        subprocess.run([*run, "addr", "add", "fd99::1/64", "dev", "br0", "nodad"], check=True)
        subprocess.run([*run, "link", "set", "br0", "up"], check=True)
        case.host += [
            op("net.loopback"),
            op("net.veth", "vmmt0", "br0", "eth0", "02:42:0a:63:00:02", 1400),
            op("net.address", "eth0", "10.99.0.2/24"),
            op("net.address", "eth0", "fd99::2/64"),
            op("net.up", "eth0"),
            op("net.route", "10.99.0.1"),
            op("net.route", "fd99::1"),
        ]
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def enter(name: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{name}")


def test_link_addresses_and_routes(case: Case, outside: str) -> None:
    result = case.sh(
        "ip -o addr; ip route; ip -6 route show default; ip link show eth0",
        prefix=enter(outside),
    )
    assert "lo    inet 127.0.0.1/8" in result.out
    assert "eth0    inet 10.99.0.2/24" in result.out
    assert "eth0    inet6 fd99::2/64" in result.out
    assert "default via 10.99.0.1 dev eth0" in result.out
    assert "default via fd99::1 dev eth0" in result.out
    assert "mtu 1400" in result.out
    assert "02:42:0a:63:00:02" in result.out


def test_gateway_answers(case: Case, outside: str) -> None:
    (case.layer / "bin/ping").symlink_to("busybox")
    result = case.sh("ping -c1 -w5 10.99.0.1 && ping -c1 -w5 fd99::1", prefix=enter(outside))
    assert result.code == 0, result


def test_network_outlives_the_process(case: Case, outside: str) -> None:
    """Two launches from one launcher: the link is made once, the namespace is the same."""
    result = case.sh(
        "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; ip -o -4 addr show eth0 | wc -l",
        options=("-n", "2"),
        prefix=enter(outside),
    )
    net1, pid1, links1, net2, pid2, links2 = result.out.split()
    assert net1 == net2
    assert (links1, links2) == ("1", "1")
    assert net1 != os.readlink("/proc/self/ns/net")
    assert pid1 != os.readlink("/proc/self/ns/pid") != pid2


def test_network_errors(case: Case, outside: str) -> None:
    case.host[1] = op("net.veth", "vmmt0", "nobridge", "eth0", "02:42:0a:63:00:02", 1400)
    result = case.run("true", prefix=enter(outside))
    assert result.code == 125
    assert "net.veth vmmt0 nobridge: interface nobridge: No such device" in result.err
    case.host[1] = op(
        "net.veth", "a-name-that-is-too-long", "br0", "eth0", "02:42:0a:63:00:02", 1400
    )
    assert "is no interface name" in case.run("true", prefix=enter(outside)).err
    case.host = [op("net.up", "lo")]
    case.namespaces.remove("net")
    assert "need a network namespace" in case.run("true").err


def test_a_link_left_by_an_earlier_attempt_is_replaced(case: Case, outside: str) -> None:
    """Its network namespace may still be on the way out; a stranger of that name is not touched."""
    add = ["ip", "-n", outside, "link", "add", "vmmt0", "type"]
    subprocess.run([*add, "veth", "peer", "name", "other"], check=True)
    result = case.run("true", prefix=enter(outside))
    assert result.code == 0, result
    subprocess.run(["ip", "-n", outside, "link", "del", "vmmt0"], check=False)
    subprocess.run([*add, "bridge"], check=True)
    assert "File exists" in case.run("true", prefix=enter(outside)).err


def test_host_network(case: Case) -> None:
    case.namespaces.remove("net")
    assert case.run("readlink", "/proc/self/ns/net").out.strip() == os.readlink("/proc/self/ns/net")


def test_given_namespaces(case: Case) -> None:
    """A network and a pid namespace that already exist are joined by path."""
    holder = subprocess.Popen(
        ["unshare", "-n", "-p", "-f", "sh", "-c", "echo up; sleep 60"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        name = f"/proc/{holder.pid}/ns"
        case.namespaces = ["mount", "uts", "ipc", "cgroup"]
        case.host = [
            op("ns.path", "net", f"{name}/net"),
            op("ns.path", "pid", f"{name}/pid_for_children"),
        ]
        result = case.sh(
            "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; cat /proc/1/comm; echo $$"
        )
        net, pid, first, own = result.out.split()
        assert net == os.readlink(f"{name}/net")
        assert pid == os.readlink(f"{name}/pid_for_children")
        assert first == "sh"
        assert int(own) > 1
        case.host[0] = op("ns.path", "net", "/proc/none")
        assert case.run("true").code == 125
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_user_namespace(case: Case) -> None:
    for path in [case.base, *case.base.rglob("*")]:
        if not path.is_symlink():
            os.chown(path, 100000, 100000)
    for parent in [*case.base.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    case.namespaces.append("user")
    case.host = [op("ns.map", "uid", 0, 100000, 65536), op("ns.map", "gid", 0, 100000, 65536)]
    case.mounts = lambda: [op("mount.fs", "proc", "proc", "/proc", "", "")]  # type: ignore[method-assign]
    result = case.sh("id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; echo $$")
    assert result.code == 0, result
    assert result.out.split()[:4] == ["0", "0", "100000", "65536"]
    assert result.out.split()[4] != os.readlink("/proc/self/ns/user")
    assert result.out.split()[5] == "1"
    inside = case.exec(
        op("env", *case.env), op("exec", "sh", "-c", "id -u; touch /made; readlink /proc/1/ns/user")
    )
    assert inside.code == 0, inside
    assert (case.base / "upper/made").stat().st_uid == 100000


def test_unified_hierarchy(case: Case) -> None:
    """A v2 group is entered at birth; its namespace shows it as the root."""
    mount = next(
        Path(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    )
    group = mount / "vmm-test2" / own_name("u")
    case.host = [
        op("cgroup.make", str(group)),
        op("cgroup.join", str(group)),
        op("cgroup.kill", str(group)),
    ]
    case.before_pivot += [
        op("mount.fs", "tmpfs", "tmpfs", "/sys/fs/cgroup", "nosuid,nodev,noexec", "mode=755"),
        op("mount.cgroup", "2", "unified", "cgroup2"),
    ]
    result = case.sh(
        "grep ^0: /proc/self/cgroup; cd /sys/fs/cgroup/unified; cat cgroup.procs; mkdir x"
    )
    assert result.out.split()[0] == "0::/"
    assert "1" in result.out.split()[1:]
    assert "Read-only file system" in result.err
    inside = case.exec(op("env", *case.env), op("exec", "grep", "^0:", "/proc/self/cgroup"))
    assert inside.out == "0::/\n"
    assert not group.parent.exists()


@pytest.mark.parametrize("process", [[], [op("user", 1000, 1000)], [op("init", "")]])
def test_killed_launcher_takes_the_workload_along(case: Case, process: list[Op]) -> None:
    case.process = [
        op("init", str(case.libexec / "vmm-init")) if o.name == "init" else o for o in process
    ]
    case.process += [caps(), allow()]
    path = case.base / "plan"
    path.write_bytes(case.plan("sh", "-c", "echo up; sleep 1000").encode())
    launcher = subprocess.Popen(
        [str(case.libexec / "vmm-launch"), str(path)], stdout=subprocess.PIPE
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    launcher.kill()
    launcher.wait()
    assert launcher.stdout.read() == b"", "the end of the pipe: everybody who held it is dead"
    launcher.stdout.close()


def test_errors_name_the_operation(case: Case) -> None:
    case.host.append(op("ns.new", "colour"))
    assert 'no namespace is called "colour"' in case.run("true").err
    plan = case.base / "plan"
    for data, said in (
        (b"", "is not a launch plan"),
        (b"VMMLP9\n", "of this version"),
        (b"VMMLP1\n\1\0\0\0", "broken records"),
    ):
        plan.write_bytes(data)
        done = subprocess.run(
            [str(case.libexec / "vmm-launch"), str(plan)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 125
        assert said in done.stderr
