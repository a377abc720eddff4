"""Numbers and processes of a running workload, compared with what the kernel shows otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.native.launching import Case, own_name
from tests.unit.native.watching import Running, groups, running
from vmm.model.launch import op

pytestmark = pytest.mark.skipif(
    not Path("/sys/fs/cgroup/cpuacct").is_dir(), reason="no cgroup v1 controllers"
)


@pytest.fixture
def made(case: Case) -> dict[str, Path]:
    return groups(case)


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_machine(case: Case, made: dict[str, Path]) -> None:
    with running(case, "sleep 100") as launcher:
        first = launcher.stats()
        time.sleep(0.5)
        second = launcher.stats()
        assert first["cpus"] == os.cpu_count()
        passed = (second["system_ns"] - first["system_ns"]) / first["cpus"]
        assert 0.3e9 < passed < 1.5e9
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
        assert abs(first["memory_limit"] - total) < total // 50
        assert "pids_limit" not in first
        assert "net_rx" not in first


def test_cpu_and_processes(case: Case, made: dict[str, Path]) -> None:
    with running(case, "(while :; do :; done) & sleep 100 & sleep 100; :") as launcher:
        until(lambda: launcher.stats()["pids"] == 4)
        first = launcher.stats()["cpu_ns"]
        until(lambda: launcher.stats()["cpu_ns"] > first + 100_000_000)
        assert launcher.stats()["cpu_ns"] == pytest.approx(
            int((made["cpuacct"] / "cpuacct.usage").read_text()), rel=0.2
        )


def test_memory_does_not_count_what_is_reclaimed_first(case: Case, made: dict[str, Path]) -> None:
    script = (
        "head -c 60000000 /dev/zero >/file; cat /file >/dev/null; echo >/made; "
        "x=$(head -c 20000000 /dev/zero | od -v | head -c 20000000); echo >/held; sleep 100; :"
    )
    with running(case, script) as launcher:
        until(lambda: (case.base / "upper/made").exists())
        usage = int((made["memory"] / "memory.usage_in_bytes").read_text())
        assert usage > 60_000_000
        assert launcher.stats()["memory"] < 40_000_000
        until(lambda: (case.base / "upper/held").exists())
        assert 20_000_000 < launcher.stats()["memory"] < 90_000_000


#: What the kernel writes: admin-guide/cgroup-v2.rst, "IO Interface Files", "CPU Interface Files",
#: "memory.stat", and admin-guide/cgroup-v1/blkio-controller.rst.
FILES = {
    "io.stat": "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n"
    "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021\n7:0 \n",
    "blkio": "8:0 Read 1000\n8:0 Write 2000\n8:0 Sync 7\n8:0 Async 8\n8:0 Discard 9\n"
    "8:0 Total 3000\n254:16 Read 10\n254:16 Write 20\nTotal 3030\n",
    "cpu.stat": "usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\nnr_periods 0\n",
    "memory.current": "50000000\n",
    "memory.max": "max\n",
    "memory.stat": "anon 1000\nfile 40000000\nactive_file 10000000\ninactive_file 30000000\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "huge": "99999999999999999999999999\n",
}


def test_the_forms_of_version_2(case: Case, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    at = {name: str(tmp_path / name) for name in FILES}
    case.host += [
        op("stats", "io", at["io.stat"]),
        op("stats", "cpu", at["cpu.stat"]),
        op("stats", "memory2", at["memory.current"], at["memory.max"], at["memory.stat"]),
        op("stats", "pids", at["pids.current"], at["pids.max"]),
    ]
    with running(case, "sleep 100") as launcher:
        stats = launcher.stats()
        total = stats.pop("memory_limit")
        assert abs(total - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")) < total // 50
        del stats["system_ns"], stats["cpus"]
        assert stats == {
            "blk_read": 1459200 + 90430464,
            "blk_write": 314773504 + 299008000,
            "cpu_ns": 123_456_000,
            "memory": 20_000_000,
            "pids": 3,
        }
        (tmp_path / "memory.max").write_text("60000000\n")
        (tmp_path / "pids.max").write_text("17\n")
        (tmp_path / "io.stat").write_text("")
        stats = launcher.stats()
        assert (stats["memory_limit"], stats["pids_limit"], stats["blk_read"]) == (
            60_000_000,
            17,
            0,
        )


def test_disks_of_version_1_and_numbers_without_end(case: Case, tmp_path: Path) -> None:
    for name in ("blkio", "huge"):
        (tmp_path / name).write_text(FILES[name])
    case.host += [
        op("stats", "blkio", str(tmp_path / "blkio")),
        op("stats", "cpuacct", str(tmp_path / "huge")),
    ]
    with running(case, "sleep 100") as launcher:
        stats = launcher.stats()
        assert (stats["blk_read"], stats["blk_write"]) == (1010, 2020)
        assert stats["cpu_ns"] == (1 << 63) - 1


@pytest.fixture
def outside(case: Case) -> Iterator[str]:
    """The launcher's own network namespace, with a bridge."""
    name = own_name("s")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            "link add br0 type bridge",
            "addr add 10.98.0.1/24 dev br0",
            "link set br0 up",
        ):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_the_link_as_the_workload_sees_it(
    case: Case, made: dict[str, Path], outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.host += [
        op("net.loopback"),
        op("net.veth", "vmmt0", "br0", "eth0", "02:42:0a:62:00:02", 1500),
        op("net.address", "eth0", "10.98.0.2/24"),
        op("net.up", "eth0"),
        op("stats", "net", "vmmt0"),
    ]
    launch = case.libexec / "vmm-launch"
    wrapper = case.base / "bin"
    wrapper.mkdir()
    (wrapper / "vmm-launch").write_text(
        f'#!/bin/sh\nexec nsenter --net=/run/netns/{outside} {launch} "$@"\n'
    )
    (wrapper / "vmm-launch").chmod(0o755)
    monkeypatch.setattr(case, "libexec", wrapper)
    with running(case, "sleep 100") as launcher:
        before = launcher.stats()
        send = "import socket; s = socket.socket(2, 2); "
        send += "[s.sendto(bytes(1000), ('10.98.0.2', 9)) for _ in range(500)]"
        inside = ["nsenter", f"--net=/run/netns/{outside}", sys.executable, "-c", send]
        subprocess.run(inside, check=True)
        until(lambda: launcher.stats()["net_rx"] - before["net_rx"] > 500_000)
        after = launcher.stats()
        assert after["net_rx"] - before["net_rx"] < 600_000
        assert 0 < after["net_tx"] - before["net_tx"] < 100_000, "it said that nobody listens"


def test_own_link(case: Case, made: dict[str, Path]) -> None:
    """As a guest's first process counts: the link is its own."""
    case.host.append(op("stats", "net-own", "lo"))
    case.namespaces.remove("net")
    with running(case, "sleep 100") as launcher:
        stats = launcher.stats()
        shown = Path("/sys/class/net/lo/statistics/rx_bytes")
        assert 0 <= stats["net_rx"] <= int(shown.read_text())
        assert stats["net_rx"] == stats["net_tx"]


def test_what_is_not_known_is_left_out(case: Case) -> None:
    case.host += [
        op("stats", "cpuacct", "/nowhere"),
        op("stats", "memory2", "/nowhere", "/nowhere", "/nowhere"),
        op("stats", "io", "/nowhere"),
        op("stats", "net", "nosuchlink"),
        op("stats", "net", "a name that is too long"),
    ]
    with running(case, "sleep 100") as launcher:
        assert set(launcher.stats()) == {"system_ns", "cpus"}


@pytest.mark.parametrize(
    "given", [op("stats", "weather", "/x"), op("stats", "cpu", "/x", "/y"), op("stats", "net")]
)
def test_unknown_statistics(case: Case, given: object) -> None:
    case.host.append(given)  # type: ignore[arg-type]
    assert case.run("true").code == 125


# ---- top


def lines(launcher: Running) -> dict[str, list[str]]:
    return {line[13]: line for line in launcher.top()}


def test_processes_and_what_ps_says_of_them(case: Case, made: dict[str, Path]) -> None:
    script = "sleep 987 & sleep 986 & wait"
    case.process = [op("user", 33, 44)]
    with running(case, script) as launcher:
        until(lambda: {"sleep 987", "sleep 986", f"sh -c {script}"} == set(lines(launcher)))
        found = lines(launcher)
        shell, sleep = found[f"sh -c {script}"], found["sleep 987"]
        assert len(shell) == len(sleep) == 14
        columns = "pid,ppid,euid,stat,vsz,rss,nice,nlwp,comm"
        ps = subprocess.run(
            ["ps", "-o", columns, "--no-headers", "-p", sleep[0]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert sleep[1] == shell[0] == ps[1]
        assert (sleep[0], sleep[2], sleep[12]) == (ps[0], ps[2], ps[8]) == (sleep[0], "33", "sleep")
        assert sleep[3] == ps[3][0] == "S"
        assert (int(sleep[7]), sleep[9], sleep[10]) == (int(ps[4]) * 1024, ps[6], ps[7])
        assert abs(int(sleep[6]) - int(ps[5]) * 1024) < 1 << 20
        started = int(sleep[11]) + int(sleep[4]) / 100
        assert abs(started - time.time()) < 30
        assert sleep[8] == "0"


def test_names_cannot_make_lines(case: Case, made: dict[str, Path]) -> None:
    evil = "a) R 1 1\n\t\x1b[2Jb"
    (case.layer / "bin" / evil).symlink_to("busybox")
    (case.layer / "evil").write_text("#!/bin/sh\nexec -a 'arg0\n\tx' sleep 1000\n")
    busybox = Path("/bin/busybox").read_bytes()
    (case.layer / "bin/sleep").unlink()
    (case.layer / "bin/sleep").write_bytes(busybox)
    (case.layer / "bin/sleep").chmod(0o755)
    script = (
        "printf 'sp) R 9 9\\n\\t\\377' >/name; cp /bin/busybox /bin/x; "
        "(echo -n 'x) S\n9' >/proc/self/comm; exec 3</dev/zero; read y <&3) & "
        "sh -c 'while :; do sleep 100; done' 'a\tb\nc' \"$(printf '\\377\\033[2J')\" & wait"
    )
    for name in ("printf", "cp"):
        (case.layer / "bin" / name).symlink_to("busybox")
    with running(case, script) as launcher:
        until(lambda: any("x) S" in line[12] for line in launcher.top()))
        until(lambda: any("\\x1b" in line[13] for line in launcher.top()))
        found = launcher.top()
        assert all(len(line) == 14 for line in found)
        assert all(field.isascii() and field.isprintable() for line in found for field in line)
        named = next(line for line in found if line[12].startswith("x) S"))
        assert named[12] == "x) S\\x0a9"
        assert named[1].isdigit() and named[3] in "RSD"
        said = next(line for line in found if "\\x1b" in line[13])[13]
        assert "a\\x09b\\x0ac \\xff\\x1b[2J" in said


def test_long_arguments_are_cut(case: Case, made: dict[str, Path]) -> None:
    script = (
        "a=$(head -c 9000 /dev/zero | od -v | head -c 100000); sh -c 'sleep 100; :' \"$a\" & wait"
    )
    with running(case, script) as launcher:
        until(lambda: any(len(line[13]) > 4000 for line in launcher.top()))
        assert max(len(line[13]) for line in launcher.top()) <= 4 * 4096


def test_many_and_short_lived_processes(case: Case, made: dict[str, Path]) -> None:
    script = (
        "(while :; do true | true | true; done) & "
        "for i in 0 1 2 3 4 5 6 7 8 9; do "
        "for j in 0 1 2 3 4 5 6 7 8 9; do sleep 654 & done; done; wait"
    )
    with running(case, script) as launcher:
        until(lambda: sum(line[13] == "sleep 654" for line in launcher.top()) == 100)
        for _ in range(50):
            found = launcher.top()
            assert sum(line[13] == "sleep 654" for line in found) == 100
            assert all(len(line) == 14 for line in found)


def test_groups_below_are_listed(case: Case, made: dict[str, Path]) -> None:
    with running(case, "sleep 543 & wait") as launcher:
        until(lambda: "sleep 543" in lines(launcher))
        pid = lines(launcher)["sleep 543"][0]
        below = made["freezer"] / "deeper/still"
        below.mkdir(parents=True)
        (below / "cgroup.procs").write_text(pid)
        assert lines(launcher)["sleep 543"][0] == pid


def test_without_groups_the_first_process_is_listed(case: Case) -> None:
    with running(case, "sleep 100; :") as launcher:
        until(lambda: bool(launcher.top()))
        assert [line[13] for line in launcher.top()] == ["sh -c sleep 100; :"]
