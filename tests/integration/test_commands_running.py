"""pause, top, stats, cp and update, of workloads that run and of some that do not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance
from tests.integration.test_crash import instants, kill_at

IDLE = ["busybox", "sleep", "1000"]
#: Busy, and says so.
BUSY = ["busybox", "sh", "-c", "echo begun; i=0; while :; do i=$((i+1)); done"]


def start(vmm: Instance, name: str, *words: str) -> str:
    """A detached workload without a network; its id."""
    return vmm.out("run", "-d", "--network=none", "--name", name, *words)


def refused(vmm: Instance, *words: str, code: int = 1) -> str:
    """What a command that must fail says."""
    done = vmm.run(*words, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def field(vmm: Instance, name: str, template: str) -> str:
    return vmm.out("inspect", "--format", template, name)


# ---- pause


def test_a_paused_workload_stands_still_and_goes_on(vmm: Instance) -> None:
    workload = start(vmm, "c", *BUSY)
    assert vmm.out("pause", "c") == "c"
    assert field(vmm, "c", "{{.State.Status}} {{.State.Paused}}") == "paused true"
    assert vmm.out("ps", "--format", "{{.Status}}").endswith("(Paused)")
    before, after = (vmm.out("top", "c", "-o", "cputime") for _ in range(2))
    assert before == after
    for words in (["exec", "c", "true"], ["attach", "c"]):
        assert "unpause" in refused(vmm, *words)
    assert f"Container {workload} is already paused" in refused(vmm, "pause", "c")
    assert "cannot start a paused container" in refused(vmm, "start", "c")
    assert vmm.out("logs", "c") == "begun"
    assert vmm.out("stats", "--no-stream", "--format", "{{.CPUPerc}}", "c") == "0.00%"
    assert vmm.out("unpause", "c") == "c"
    assert f"Container {workload} is not paused" in refused(vmm, "unpause", "c")
    assert vmm.out("exec", "c", "echo", "on") == "on"
    actions = [json.loads(line)["Action"] for line in (vmm.root / "events.jsonl").open()]
    assert [action for action in actions if "pause" in action][-2:] == ["pause", "unpause"]


@pytest.mark.parametrize(
    "words", [["stop", "-t", "1"], ["kill"], ["rm", "-f"], ["restart", "-t", "1"]]
)
def test_a_paused_workload_can_be_ended(vmm: Instance, words: list[str]) -> None:
    start(vmm, "c", *IDLE)
    vmm.run("pause", "c")
    assert "container is paused" in refused(vmm, "rm", "c")
    vmm.run(*words, "c")
    statuses = {"stop": "exited", "kill": "exited", "rm": "", "restart": "running"}
    assert vmm.out("ps", "-a", "--format", "{{.State}}") == statuses[words[0]]


def test_pause_of_several_goes_on_after_a_failure(vmm: Instance) -> None:
    for name in "ab":
        start(vmm, name, *IDLE)
    vmm.run("create", "--name", "still", *IDLE)
    done = vmm.run("pause", "a", "still", "nope", "b", check=False)
    assert (done.returncode, done.stdout) == (1, "a\nb\n")
    assert "is not running" in done.stderr
    assert "No such container: nope" in done.stderr


# ---- top


def test_top_lists_the_processes_as_the_host_numbers_them(vmm: Instance) -> None:
    start(vmm, "c", "--user", "4321", "busybox", "sh", "-c", "sleep 998 & exec sleep 999")
    pid = field(vmm, "c", "{{.State.Pid}}")
    titles, *rows = (line.split() for line in vmm.out("top", "c").splitlines())
    assert titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert sorted((row[0], row[-2], row[-1]) for row in rows) == [
        ("4321", "sleep", "998"),
        ("4321", "sleep", "999"),
    ]
    assert {row[1]: row[-1] for row in rows}[pid] == "999"
    titles, *rows = (line.split() for line in vmm.out("top", "c", "aux").splitlines())
    assert titles[:4] == ["USER", "PID", "%CPU", "%MEM"]
    assert len(rows) == 2
    vmm.run("exec", "-d", "c", "sh", "-c", "exec -a $(printf 'x\\033[31my') sleep 997")
    listed = vmm.out("top", "c", "-eo", "args")
    assert "\033" not in listed
    assert "ps option --bad" in refused(vmm, "top", "c", "--bad", code=125)
    vmm.run("stop", "-t0", "c")
    assert "is not running" in refused(vmm, "top", "c")


# ---- stats


def test_stats_of_one_sample(vmm: Instance) -> None:
    workload = start(vmm, "busy", "-m", "64m", *BUSY)
    vmm.run("create", "--name", "still", *IDLE)
    rows = vmm.out("stats", "--no-stream").splitlines()
    headings = re.split(r"\s{3,}", rows[0].strip())
    assert headings == [
        "CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O",
        "PIDS",
    ]  # fmt: skip
    values = re.split(r"\s{3,}", rows[1].strip())
    assert values[:2] == [workload[:12], "busy"]
    assert 20 < float(values[2].rstrip("%")) < 120
    assert values[3].endswith(" / 64MiB")
    assert values[7] == "1"
    assert len(rows) == 2
    lines = vmm.out("stats", "--no-stream", "-a", "--no-trunc", "--format", "json").splitlines()
    shown = {row["Name"]: row for row in map(json.loads, lines)}
    assert shown["busy"]["ID"] == workload
    assert (shown["still"]["MemUsage"], shown["still"]["PIDs"]) == ("0B / 0B", "0")
    assert "No such container: nope" in refused(vmm, "stats", "--no-stream", "nope")


def test_stats_of_the_network(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "a", "busybox", "nc", "-l", "-p", "80", "-e", "true")
    address = field(vmm, "a", "{{.NetworkSettings.IPAddress}}")
    script = f"head -c 3000000 /dev/zero | nc -w 1 {address} 80; sleep 100"
    vmm.run("run", "-d", "--name", "b", "busybox", "sh", "-c", script)
    time.sleep(1)
    moved = vmm.out("stats", "--no-stream", "--format", "{{.NetIO}}", "b")
    assert re.fullmatch(r"[\d.]+[kM]?B / [\d.]+[kM]B", moved), moved


def test_stats_redraw_a_screen_until_interrupted(vmm: Instance) -> None:
    start(vmm, "c", *IDLE)
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("nsenter", vmm.argv("stats"))
    shown, end = b"", time.monotonic() + 15
    while shown.count(b"\x1b[H") < 2 and time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                shown += os.read(fd, 4096)
    os.write(fd, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(fd)
    assert shown.count(b"CONTAINER ID") >= 2
    assert b"\x1b[K\r\n" in shown
    assert b"\x1b[J" in shown


def test_stats_of_named_workloads_end_with_the_last_of_them(vmm: Instance) -> None:
    start(vmm, "c", *IDLE)
    process = vmm.popen("stats", "--format", "{{.Name}}", "c", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"c\n"
    vmm.run("rm", "-f", "c")
    assert process.wait(timeout=10) == 0
    process.stdout.close()


# ---- cp


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of everything that can be copied."""
    made = tmp_path / "tree"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_text("content")
    os.chown(made / "file", 1234, 4321)
    (made / "file").chmod(0o4750)
    os.link(made / "file", made / "hard")
    (made / "link").symlink_to("file")
    (made / "out").symlink_to("/etc/shadow")
    (made / "sub" / "in a\nline").write_text("x")
    (made / os.fsdecode(b"\xff\xfe")).write_bytes(b"bytes")
    (made / "holes").touch()
    os.truncate(made / "holes", 3 << 20)
    os.utime(made / "file", ns=(10**18, 10**18))
    return made


@pytest.fixture(params=["running", "paused", "stopped"])
def c(request: pytest.FixtureRequest, vmm: Instance) -> Iterator[str]:
    """A workload of that state, with a volume, that has a command to be run again."""
    start(vmm, "c", "-v", "named:/data", *IDLE)
    if request.param == "stopped":
        vmm.run("stop", "-t", "0", "c")
    elif request.param == "paused":
        vmm.run("pause", "c")
    yield "c"
    assert list((vmm.root / "journal").iterdir()) == []


def names(path: Path) -> set[bytes]:
    return {os.fsencode(p.relative_to(path)) for p in path.rglob("*")}


def test_a_tree_goes_in_and_comes_out_again(
    vmm: Instance, c: str, tree: Path, tmp_path: Path
) -> None:
    vmm.run("cp", "-a", str(tree), f"{c}:/data/new")
    vmm.run("cp", "-a", f"{c}:/data/new", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert names(back) == names(tree)
    status = (back / "file").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 4321, 0o4750)
    assert status.st_mtime_ns == 10**18
    assert status.st_ino == (back / "hard").stat().st_ino
    assert os.readlink(back / "out") == "/etc/shadow"
    assert ((back / "holes").stat().st_size, (back / "holes").stat().st_blocks) == (3 << 20, 0)
    vmm.run("restart", "-t", "0", c)
    assert vmm.out("exec", c, "cat", "/data/new/file") == "content"


def test_owners_become_roots_and_the_callers(
    vmm: Instance, c: str, tree: Path, tmp_path: Path
) -> None:
    vmm.run("cp", f"{tree}/file", f"{c}:/data/plain")
    vmm.run("cp", "-a", f"{tree}/file", f"{c}:/data/kept")
    for name, owner in (("plain", (0, 0, 0o750)), ("kept", (1234, 4321, 0o4750))):
        vmm.run("cp", "-a", f"{c}:/data/{name}", str(tmp_path / name))
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == owner
    vmm.run("cp", f"{c}:/data/kept", str(tmp_path / "mine"))
    status = (tmp_path / "mine").stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (os.geteuid(), 0o750)


def test_rules_of_destinations(vmm: Instance, c: str, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "plain").write_text("old")
    vmm.run("cp", f"{tree}/.", f"{c}:/made")
    vmm.run("cp", str(tree), f"{c}:/made")
    vmm.run("cp", f"{tree}/sub/.", f"{c}:/made")
    vmm.run("cp", f"{c}:/made", str(tmp_path / "there"))
    vmm.run("cp", f"{c}:/made/sub/.", str(tmp_path / "there"))
    made = tmp_path / "there" / "made"
    assert (made / "tree" / "file").read_text() == "content"
    assert (made / "in a\nline").exists()
    assert (tmp_path / "there" / "in a\nline").exists()
    vmm.run("cp", f"{c}:/made/file", str(tmp_path / "plain"))
    assert (tmp_path / "plain").read_text() == "content"
    vmm.run("cp", f"{c}:/made/link", str(tmp_path / "link"))
    vmm.run("cp", "-L", f"{c}:/made/link", str(tmp_path / "followed"))
    assert os.readlink(tmp_path / "link") == "file"
    assert (tmp_path / "followed").read_text() == "content"
    faults = [
        ([f"{c}:/made/file/", "x"], "not a directory"),
        ([f"{c}:/made", str(tmp_path / "plain")], "cannot copy directory"),
        ([f"{c}:/made/file", f"{tmp_path}/none/"], "no such directory"),
        ([f"{c}:/made/file", f"{tmp_path}/none/x"], "invalid output path"),
        ([f"{c}:/none", "x"], f"Could not find the file /none in container {c}"),
        ([str(tree), f"{c}:/made/file"], "cannot copy directory"),
        ([str(tree), f"{c}:/none/x"], "No such file or directory"),
        ([f"{tree}/file", f"{c}:/none/"], "no such directory"),
        ([f"{tree}/none", f"{c}:/made"], f"{tree}/none: No such file or directory"),
    ]
    for words, text in faults:
        assert text in refused(vmm, "cp", *words)
    assert "between containers" in refused(vmm, "cp", f"{c}:/a", f"{c}:/b", code=125)
    assert "at least one container" in refused(vmm, "cp", "/a", "./b:c", code=125)


def test_archives_on_standard_streams(vmm: Instance, c: str, tree: Path) -> None:
    made = subprocess.run(
        ["tar", "-C", tree, "-cz", "file", "sub"], check=True, capture_output=True
    ).stdout
    argv = vmm.argv("cp", "-", f"{c}:/data")
    subprocess.run(argv, input=made, check=True, timeout=50)
    argv = vmm.argv("cp", f"{c}:/data/.", "-")
    out = subprocess.run(argv, check=True, timeout=50, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        member = archive.getmember("file")
        assert (member.uid, member.gid, member.mode) == (1234, 4321, 0o4750)
        assert {"sub", "sub/in a\nline"} <= {os.path.normpath(n) for n in archive.getnames()}
    done = vmm.run("cp", "-", f"{c}:/data/file", check=False, input="")
    assert (done.returncode, "must be a directory" in done.stderr) == (1, True)
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../evil"))
    argv = vmm.argv("cp", "-", f"{c}:/data")
    done_bytes = subprocess.run(argv, input=evil.getvalue(), capture_output=True, check=False)
    assert done_bytes.returncode == 1
    assert b"outside" in done_bytes.stderr


def test_links_stay_inside(vmm: Instance, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    start(vmm, "c", *IDLE)
    script = f"ln -s {tmp_path} /evil; mkdir -p /t /in{tmp_path}; ln -s {secret} /t/link"
    vmm.run("exec", "c", "sh", "-c", script)
    (tmp_path / "file").write_text("x")
    assert "No such file" in refused(vmm, "cp", str(tmp_path / "file"), "c:/evil/secret")
    assert "Could not find" in refused(vmm, "cp", "c:/evil/secret", "-")
    assert "Could not find" in refused(vmm, "cp", "-L", "c:/t/link", str(tmp_path / "got"))
    vmm.run("cp", "c:/t", str(tmp_path / "t"))
    # The copy of a link is in the way: it is replaced, never written through.
    vmm.run("exec", "c", "sh", "-c", "rm /t/link; echo bad >/t/link")
    vmm.run("cp", "c:/t/.", str(tmp_path / "t"))
    assert secret.read_text() == "of the host"
    assert (tmp_path / "t" / "link").read_text() == "bad\n"
    # A directory that is a link on the host is not entered.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "t" / "sub").symlink_to(tmp_path / "elsewhere")
    vmm.run("exec", "c", "sh", "-c", "mkdir /t/sub; echo bad >/t/sub/file")
    refused(vmm, "cp", "c:/t/.", str(tmp_path / "t"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_copies_while_names_are_swapped(vmm: Instance, tmp_path: Path) -> None:
    """A directory that is a link to the host's path every other moment leads nowhere else."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("of the host")
    start(vmm, "c", *IDLE)
    script = (
        f"mkdir -p /w/real; echo inside >/w/real/file; cd /w; "
        f"while :; do mv real swap; ln -s {outside} real; rm real; mv swap real; done"
    )
    vmm.run("exec", "-d", "c", "sh", "-c", script)
    (tmp_path / "new").write_text("new")
    for attempt in range(8):
        vmm.run("cp", str(tmp_path / "new"), "c:/w/real/file2", check=False)
        got = tmp_path / f"got{attempt}"
        vmm.run("cp", "c:/w/real/file", str(got), check=False)
        assert not got.exists() or got.read_text() == "inside\n"
    assert [p.name for p in outside.iterdir()] == ["file"]


def test_devices_are_not_made_on_the_host(vmm: Instance, tmp_path: Path) -> None:
    start(vmm, "c", *IDLE)
    vmm.run("exec", "c", "sh", "-c", "mkdir /d; mknod /d/null c 1 3; chmod 4755 /d")
    assert "device" in refused(vmm, "cp", "c:/d", str(tmp_path / "d"))
    assert not (tmp_path / "d" / "null").exists()


def test_read_only_and_scarce_places(vmm: Instance, tree: Path) -> None:
    start(vmm, "c", "--read-only", "-v", "named:/ro:ro", "--tmpfs", "/t:size=64k", *IDLE)
    for state in ("running", "stopped"):
        for place in ("/x", "/ro/x"):
            assert "Read-only file system" in refused(vmm, "cp", f"{tree}/file", f"c:{place}")
        if state == "running":
            vmm.run("cp", f"{tree}/file", "c:/t/x")
            big = tree / "big"
            big.write_bytes(os.urandom(1 << 20))
            assert "No space left" in refused(vmm, "cp", str(big), "c:/t/y")
            vmm.run("stop", "-t", "0", "c")


def members(pid: int) -> list[bytes]:
    """Command lines of the processes in the mount namespace of ``pid``."""
    wanted, found = os.readlink(f"/proc/{pid}/ns/mnt"), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/mnt") == wanted:
                found.append((process / "cmdline").read_bytes())
    return found


def test_nothing_is_left_of_a_copy_that_is_interrupted(vmm: Instance, tmp_path: Path) -> None:
    workload = start(vmm, "c", *IDLE)
    vmm.run("exec", "c", "truncate", "-s", "20G", "/big")
    for command in (["ps"], ["pause", "c"], ["stop", "-t", "0", "c"]):
        vmm.run(*command)
        process = vmm.popen("cp", "c:/big", "-", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.read(1 << 20)
        process.send_signal(signal.SIGINT)
        process.stdout.close()
        assert process.wait(timeout=10) in (130, 141)
        if "stop" not in command:
            assert members(int(field(vmm, "c", "{{.State.Pid}}"))) == [b"sleep\x001000\x00"]
    instances = list((vmm.root / "workloads" / workload / "exec").glob("*.json"))
    assert all(path.with_suffix(".config").exists() for path in instances)
    assert [p for p in vmm.run_dir.iterdir() if re.fullmatch("[0-9a-f]{12}", p.name)] == []


# ---- update


def limit(vmm: Instance, workload: str, hierarchy: str, name: str) -> str:
    """A file of the workload's group, "" when there is none."""
    for base in Path("/sys/fs/cgroup").glob(f"{hierarchy}*/**/{vmm.mark}/{workload}"):
        with contextlib.suppress(FileNotFoundError):
            return (base / name).read_text().strip()
    return ""


def test_limits_hold_at_once_and_stay(vmm: Instance) -> None:
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("cgroup v1 is not here")
    workload = start(vmm, "c", "-m", "64m", "--restart", "always", *IDLE)
    words = ["-m", "128m", "--pids-limit", "30", "--cpus", "0.5", "--cpuset-cpus", "0"]
    assert vmm.out("update", *words, "--restart", "on-failure:3", "c") == "c"
    wanted = [
        ("memory", "memory.limit_in_bytes", str(128 << 20)),
        ("memory", "memory.memsw.limit_in_bytes", str(256 << 20)),
        ("pids", "pids.max", "30"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpuset", "cpuset.cpus", "0"),
    ]

    def check() -> None:
        assert [(h, n, limit(vmm, workload, h, n)) for h, n, _ in wanted] == wanted
        group = limit(vmm, workload, "cpu", "cgroup.procs").split()
        assert field(vmm, "c", "{{.State.Pid}}") in group
        shown = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}"
        assert field(vmm, "c", shown) == f"{128 << 20} 500000000 on-failure"

    check()
    assert vmm.out("exec", "c", "sh", "-c", "grep :cpu: /proc/self/cgroup").endswith(workload)
    os.kill(int(field(vmm, "c", "{{.State.Pid}}")), signal.SIGKILL)  # the policy starts it again
    end = time.monotonic() + 10
    while field(vmm, "c", "{{.RestartCount}} {{.State.Status}}") != "1 running":
        assert time.monotonic() < end
        time.sleep(0.05)
    check()
    vmm.run("restart", "-t", "0", "c")
    check()


def test_what_cannot_be_applied_changes_nothing(vmm: Instance) -> None:
    script = "head -c 30000000 /dev/zero >/dev/shm/x; echo full; sleep 1000"
    workload = start(vmm, "c", "-m", "64m", "busybox", "sh", "-c", script)
    while "full" not in vmm.out("logs", "c"):
        time.sleep(0.05)
    for words, text in (
        (["-m", "1m"], "Minimum memory"), (["--cpus", "999"], "--cpus"), ([], "one or more flags"),
        (["--restart", "sometimes"], "restart policy"), (["--memory-swap", "32m"], "memoryswap"),
        (["--cpuset-cpus", "999"], "cpuset"), (["--blkio-weight", "9"], "block I/O"),
    ):  # fmt: skip
        done = vmm.run("update", *words, "c", check=False)
        assert done.returncode in (1, 125)
        assert text in done.stderr
    if limit(vmm, workload, "memory", "memory.limit_in_bytes"):
        assert "memory.limit_in_bytes" in refused(vmm, "update", "-m", "8m", "--pids-limit=9", "c")
        assert limit(vmm, workload, "pids", "pids.max") == "4096"
    assert field(vmm, "c", "{{.HostConfig.Memory}}") == str(64 << 20)
    removing = start(vmm, "gone", "--rm", *IDLE)
    assert removing
    assert "AutoRemove" in refused(vmm, "update", "--restart", "always", "gone")


def test_a_killed_update_leaves_no_lie(vmm: Instance, tmp_path: Path) -> None:
    """What is written and what holds agree after the next change, wherever it was killed."""
    workload = start(vmm, "c", "-m", "64m", *IDLE)
    if not limit(vmm, workload, "memory", "memory.limit_in_bytes"):
        pytest.skip("cgroup v1 is not here")
    found = instants(vmm, ["update", "-m", "65m", "c"], tmp_path / "log")
    middle = [(call, number) for call, number in found if call in ("renameat", "rename", "sendto")]
    assert len(middle) >= 3
    for size, (call, ordinal) in enumerate(middle, 80):
        kill_at(vmm, ["update", "-m", f"{size}m", "c"], call, ordinal)
        vmm.run("meta", "set", "c", f"size={size}")
        said = field(vmm, "c", "{{.HostConfig.Memory}}")
        assert said == limit(vmm, workload, "memory", "memory.limit_in_bytes"), (call, ordinal)
    assert int(said) > 65 << 20


def test_update_of_one_that_does_not_run(vmm: Instance) -> None:
    script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes || cat memory.max"
    vmm.run("create", "--name", "c", "--network=none", "busybox", "sh", "-c", script)
    vmm.run("update", "--cpus", "0.5", "--cpu-shares", "100", "-m", "32m", "c")
    shown = "{{.HostConfig.CpuShares}} {{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}"
    assert field(vmm, "c", shown) == f"100 500000000 {32 << 20}"
    assert vmm.out("start", "-a", "c") == str(32 << 20)
    assert vmm.run("update", "-m", "32m", "nope", "c", check=False).stdout == "c\n"


def test_the_device_list_survives_an_update(vmm: Instance) -> None:
    start(vmm, "c", "--device", "/dev/full:/dev/mine", *IDLE)
    vmm.run("update", "--pids-limit", "50", "c")
    done = vmm.run("exec", "c", "sh", "-c", "echo x >/dev/mine", check=False)
    assert "No space left" in done.stderr
