"""Workloads from creation to removal, as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.instance import Instance


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
        (["no-such-program"], 127),
        (["/etc"], 126),
        (["/etc/passwd"], 126),
    ],
)
def test_run_ends_with_dockers_exit_codes(vmm: Instance, argv: list[str], code: int) -> None:
    done = vmm.run("run", "--rm", "--network", "none", "busybox", *argv, check=False)
    assert done.returncode == code, done.stderr


def test_output_streams_stay_apart(vmm: Instance) -> None:
    done = vmm.run("run", "--rm", "--network=none", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_standard_input_reaches_the_workload(vmm: Instance) -> None:
    text = "line\n" * 50_000
    done = vmm.run("run", "-i", "--rm", "--network=none", "busybox", "cat", input=text)
    assert done.stdout == text


def test_detached_life(vmm: Instance) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done"
    workload = vmm.out("run", "-d", "--name", "life", "busybox", "sh", "-c", script)
    assert len(workload) == 64
    line = vmm.out("ps", "--format", "{{.Names}}|{{.Image}}|{{.Status}}")
    assert line.startswith("life|busybox|Up ")
    while "hello" not in vmm.out("logs", "life"):
        time.sleep(0.05)
    assert vmm.out("exec", "life", "hostname") == workload[:12]
    assert vmm.run("exec", "life", "sh", "-c", "exit 9", check=False).returncode == 9
    assert vmm.out("stop", "life") == "life"
    state = vmm.inspect("life")["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 3, False)
    assert vmm.out("logs", "life") == "hello\nbye"
    assert vmm.out("wait", "life") == "3"
    assert vmm.out("start", "life") == "life"
    assert vmm.inspect("life")["State"]["Running"] is True
    assert vmm.out("kill", "life") == "life"
    assert vmm.inspect("life")["State"]["ExitCode"] == 137
    assert vmm.out("rm", "life") == "life"
    assert "No such" in vmm.run("inspect", "life", check=False).stderr


def test_stop_kills_after_the_grace_period(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "deaf", "busybox", "sh", "-c", "trap '' TERM; sleep 100")
    begin = time.monotonic()
    vmm.run("stop", "-t", "1", "deaf")
    assert 1 <= time.monotonic() - begin < 8
    assert vmm.inspect("deaf")["State"]["ExitCode"] == 137


def test_create_then_start_attached(vmm: Instance) -> None:
    vmm.run("create", "--name", "later", "busybox", "echo", "now")
    assert vmm.inspect("later")["State"]["Status"] == "created"
    assert vmm.run("start", "-a", "later").stdout == "now\n"
    assert vmm.inspect("later")["State"]["Status"] == "exited"


def test_names_are_taken_found_and_changed(vmm: Instance) -> None:
    first = vmm.out("create", "--name", "one", "busybox", "true")
    again = vmm.run("create", "--name", "one", "busybox", "true", check=False)
    assert again.returncode == 125 or again.returncode == 1
    assert 'The name "one" is already in use' in again.stderr
    vmm.run("rename", "one", "uno")
    assert vmm.inspect("uno")["Id"] == vmm.inspect(first[:10])["Id"] == first
    assert vmm.run("inspect", "one", check=False).returncode == 1


def test_restart_policy_counts_and_manual_stop_ends_it(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox", "false")
    assert vmm.out("wait", "again") == "1"
    assert vmm.inspect("again")["RestartCount"] == 2
    vmm.run("run", "-d", "--name", "ever", "--restart", "always", "busybox", "sleep", "100")
    vmm.run("stop", "-t", "0", "ever")
    time.sleep(0.3)
    assert vmm.inspect("ever")["State"]["Status"] == "exited"


def test_logs_follow_tail_and_time(vmm: Instance) -> None:
    script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done"
    vmm.run("run", "-d", "--name", "talk", "busybox", "sh", "-c", script)
    assert vmm.out("logs", "-f", "talk").split() == ["1", "2", "3", "4", "5"]
    assert vmm.out("logs", "--tail", "2", "talk").split() == ["4", "5"]
    stamped = vmm.out("logs", "-t", "--tail", "1", "talk")
    assert stamped.endswith("Z 5") and stamped.startswith("20")
    assert vmm.out("logs", "--since", stamped.split()[0], "talk") == "5"


def test_the_shim_takes_its_workload_along(vmm: Instance) -> None:
    vmm.run("run", "-d", "--name", "orphan", "busybox", "sleep", "1000")
    state = json.loads(vmm.out("inspect", "--format", "{{json .State}}", "orphan"))
    stored = json.loads(
        (vmm.root / "workloads" / vmm.inspect("orphan")["Id"] / "state.json").read_text()
    )
    subprocess.run(["kill", "-9", str(stored["shim_pid"])], check=True)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(state["Pid"]):
        time.sleep(0.02)
    assert not _runs(state["Pid"])
    after = vmm.inspect("orphan")["State"]
    assert (after["Status"], after["ExitCode"], after["Error"]) == ("exited", 137, "shim lost")
    vmm.run("start", "orphan")
    assert vmm.inspect("orphan")["State"]["Running"] is True


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_terminal_and_its_detach_keys(vmm: Instance) -> None:
    script = f"""
import os, pty, sys, time
pid, master = pty.fork()
if pid == 0:
    os.execvp('nsenter', {vmm.argv("run", "-it", "--name", "tty", "busybox", "sh")!r})
got = b''
def until(text):
    global got
    end = time.time() + 20
    while text not in got and time.time() < end:
        got += os.read(master, 4096)
    assert text in got, got
    got = got.partition(text)[2]
until(b'#')
os.write(master, b'tty; echo x$((1+1))\\n')
until(b'/dev/pts/0')
until(b'x2')
os.write(master, b'\\x10\\x11')
until(b'read escape sequence')
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert vmm.inspect("tty")["State"]["Running"] is True


def test_signals_of_the_caller_are_proxied(vmm: Instance) -> None:
    script = "trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    caller = vmm.popen("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"ready\n"
    caller.send_signal(signal.SIGINT)  # nsenter has executed vmm in its place
    assert caller.stdout.read() == b"got\n"
    assert caller.wait(20) == 5


def test_volumes_keep_data_and_take_the_images_content(vmm: Instance) -> None:
    vmm.run("volume", "create", "data")
    vmm.run("run", "--rm", "-v", "data:/data", "busybox", "sh", "-c", "echo kept > /data/file")
    assert vmm.out("run", "--rm", "-v", "data:/x", "busybox", "cat", "/x/file") == "kept"
    read_only = vmm.run("run", "--rm", "-v", "data:/x:ro", "busybox", "touch", "/x/y", check=False)
    assert read_only.returncode == 1 and "Read-only" in read_only.stderr
    vmm.run("run", "--rm", "-v", "filled:/etc", "busybox", "true")
    assert "root" in vmm.out("run", "--rm", "-v", "filled:/mnt", "busybox", "cat", "/mnt/passwd")
    assert vmm.run("volume", "rm", "data", "filled").returncode == 0
    assert vmm.out("volume", "ls", "-q") == ""


def test_metadata_travels_with_the_workload(vmm: Instance) -> None:
    vmm.run("create", "--name", "meta", "--meta", "owner=alice", "busybox", "true")
    vmm.run("meta", "set", "meta", "site=hall 3", "note=tab\tand\nline")
    assert vmm.out("meta", "get", "meta", "site") == "hall 3"
    assert "owner" in vmm.out("meta", "ls", "meta")
    vmm.run("meta", "rm", "meta", "owner")
    for name in ("index.db", "index.db-journal"):
        (vmm.root / name).unlink()
    assert vmm.out("meta", "get", "meta", "note") == "tab\tand\nline"
    assert vmm.run("meta", "get", "meta", "owner", check=False).returncode == 1
