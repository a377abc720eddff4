"""What a workload does, said once for every backend: the bodies behind docs/backends.md.

A body looks from outside: it runs the command line, reads a file, asks a port. It must not know the
backend. A body that needs an option a backend refuses ends with Refused, and the table says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

from tests.instance import Instance, until


class Refused(Exception):
    """The backend cannot honour an option and said so."""


def on_terminal(argv: list[str]) -> str:
    """What a command prints on a terminal of 33 rows and 111 columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while data := os.read(ours, 4096):
                shown += data
        os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    """A file system in memory on a directory of the host, shared with mounts that follow it."""
    subprocess.run(("mount", "-t", "tmpfs", "none", place), check=True)
    try:
        subprocess.run(("mount", "--make-shared", place), check=True)
        yield
    finally:
        subprocess.run(("umount", place), check=True)


class Stage:
    """An instance, a backend, and the files and long-lived workload that bodies share."""

    def __init__(self, vmm: Instance, backend: str, files: Path) -> None:
        self.vmm, self.backend, self.files = vmm, backend, files
        self.idle = f"idle-{backend}"
        self.volume = f"data-{backend}"

    def run(
        self, *words: str, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``vmm run --rm`` on this backend."""
        argv = ["run", "--rm", "--backend", self.backend, *words]
        return self.done(self.vmm.run(*argv, check=False, input=input), check)

    def start(self, name: str, *words: str) -> str:
        """A detached workload; its id."""
        argv = ["run", "-d", "--backend", self.backend, "--name", name, *words]
        return self.done(self.vmm.run(*argv, check=False)).stdout.strip()

    def done(
        self, result: subprocess.CompletedProcess[str], check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        refusal = re.search(rf"backend {self.backend}\b", result.stderr)
        if result.returncode in (1, 125) and refusal:
            raise Refused(result.stderr.splitlines()[0].removeprefix("vmm: "))
        assert not check or result.returncode == 0, (result.returncode, result.stderr)
        return result

    def exec(
        self, *words: str, check: bool = True, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command in the shared workload."""
        result = self.vmm.run("exec", *words, check=False, input=input)
        assert not check or result.returncode == 0, (result.returncode, result.stderr)
        return result

    def sh(self, script: str) -> str:
        return self.exec(self.idle, "sh", "-c", script).stdout.strip()

    def make(self) -> None:
        """Start the shared workload with what many bodies look at."""
        (self.files / "rw").mkdir(parents=True)
        (self.files / "ro").mkdir()
        (self.files / "ro/known").write_text("known\n")
        (self.files / "one.conf").write_text("single\n")
        self.start(
            self.idle, "-h", "idle.example.org", "-e", "GREETING=hello world", "-w", "/work",
            "-v", f"{self.files}/rw:/rw", "-v", f"{self.files}/ro:/ro:ro",
            "-v", f"{self.files}/one.conf:/etc/one.conf", "-v", f"{self.volume}:/data",
            "--tmpfs", "/scratch:size=1m", "--ulimit", "nofile=123:456", "--pids-limit", "60",
            "--shm-size", "2m", "--cap-drop", "NET_RAW", "--sysctl", "net.ipv4.ip_forward=1",
            "-m", "256m", "--cpus", "1", "--label", "kind=shared", "-p", "80",
            "busybox", "sh", "-c",
            "echo started; mkdir -p /www; echo page >/www/index.html; httpd -p 80 -h /www; "
            "while :; do sleep 1; done",
        )  # fmt: skip
        until(lambda: "started" in self.vmm.out("logs", self.idle))

    def port(self) -> str:
        """Host address of the shared workload's port 80."""
        return self.vmm.out("port", self.idle, "80").splitlines()[0]


# ---- bodies that look at the shared workload


def exec_code(s: Stage) -> None:
    assert s.exec(s.idle, "sh", "-c", "exit 9", check=False).returncode == 9
    assert s.exec(s.idle, "no-such-program", check=False).returncode == 127
    assert s.exec(s.idle, "/etc/passwd", check=False).returncode == 126
    assert s.exec(s.idle, "sh", "-c", "kill -9 $$", check=False).returncode == 137


def exec_streams(s: Stage) -> None:
    done = s.exec(s.idle, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    text = "a line of text\n" * 40_000
    assert s.exec("-i", s.idle, "cat", input=text).stdout == text


def exec_terminal(s: Stage) -> None:
    assert "33 111" in on_terminal(s.vmm.argv("exec", "-it", s.idle, "stty", "size"))


def exec_user(s: Stage) -> None:
    assert s.exec("-u", "daemon", s.idle, "id", "-u").stdout == "1\n"
    assert s.exec("-u", "1234:5678", s.idle, "id", "-g").stdout == "5678\n"
    assert s.exec("-e", "A=b c", "-w", "/etc", s.idle, "sh", "-c", "echo $A; pwd").stdout == (
        "b c\n/etc\n"
    )
    missing = s.exec("-u", "nobody-there", s.idle, "id", check=False)
    assert missing.returncode != 0 and "unable to find user" in missing.stderr


def names(s: Stage) -> None:
    assert s.sh("hostname") == "idle.example.org"
    assert s.sh("cat /etc/hostname") == "idle.example.org"
    assert "idle.example.org" in s.sh("cat /etc/hosts")


def process(s: Stage) -> None:
    assert s.sh("echo $GREETING; pwd") == "hello world\n/work"
    assert s.sh("tr '\\0' ' ' </proc/1/cmdline").startswith("sh -c echo started")
    assert s.sh("readlink /proc/self/root; test -e /vmm || echo clean") == "/\nclean"


def binds(s: Stage) -> None:
    assert s.sh("cat /ro/known") == "known"
    assert s.exec(s.idle, "touch", "/ro/new", check=False).returncode != 0
    s.sh("echo from inside >/rw/file; chmod 640 /rw/file; chown 12:34 /rw/file")
    status = os.stat(s.files / "rw/file")
    assert (s.files / "rw/file").read_text() == "from inside\n"
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12, 34, 0o640)
    (s.files / "rw/file").write_text("from outside\n")
    until(lambda: s.sh("cat /rw/file") == "from outside", 5)
    assert s.sh("cat /etc/one.conf") == "single"


def volume(s: Stage) -> None:
    s.sh("echo kept >/data/file")
    mountpoint = json.loads(s.vmm.out("volume", "inspect", s.volume))[0]["Mountpoint"]
    assert Path(mountpoint, "file").read_text() == "kept\n"


def tmpfs(s: Stage) -> None:
    assert s.sh("df -k /scratch | awk 'END {print $2}'") == "1024"
    assert s.sh("df -k /dev/shm | awk 'END {print $2}'") == "2048"


def limits(s: Stage) -> None:
    assert s.sh("ulimit -Sn; ulimit -Hn") == "123\n456"
    assert s.sh("cat /proc/sys/net/ipv4/ip_forward") == "1"
    more = s.exec(s.idle, "sh", "-c", "for i in $(seq 99); do sleep 2 & done; wait", check=False)
    assert "can't fork" in more.stderr
    # What was started runs on for a while, and nothing more can be.
    until(lambda: "sleep 2" not in s.vmm.out("top", s.idle))


def confined(s: Stage) -> None:
    status = dict(
        line.split(":\t", 1) for line in s.sh("cat /proc/1/status").splitlines() if ":\t" in line
    )
    assert status["CapEff"].strip() == "00000000a80405fb"  # Docker's default without NET_RAW
    assert status["Seccomp"].strip() == "2"
    assert s.exec(s.idle, "mount", "-t", "tmpfs", "x", "/work", check=False).returncode != 0
    assert s.exec(s.idle, "sh", "-c", "echo 1 >/proc/sys/kernel/panic", check=False).returncode
    assert s.sh("wc -c </proc/keys") == "0"


def memory(s: Stage) -> None:
    shown = s.vmm.out("stats", "--no-stream", "--format", "{{.MemUsage}}", s.idle)
    limit = re.search(r"/ ([0-9.]+)MiB", shown)
    assert limit and 170 < float(limit[1]) <= 256, shown


def published(s: Stage) -> None:
    def fetch() -> bool:
        done = s.vmm.inside("wget", "-q", "-O", "-", "-T", "5", f"http://{s.port()}/")
        return done.stdout == "page\n"

    until(fetch)


def console(s: Stage) -> None:
    """What the kernel complains about is on it: here that there was no memory left."""
    argv, heard = s.vmm.argv("console", s.idle), s.files / "heard"
    with heard.open("w") as out, subprocess.Popen(argv, stdin=PIPE, stdout=out, stderr=PIPE) as it:

        def over() -> bool:
            if it.poll() is None:
                assert s.exec(s.idle, "tail", "/dev/zero", check=False).returncode == 137
            return it.poll() is not None or "Out of memory: Killed process" in heard.read_text()

        try:
            until(over)
            _, complaint = it.communicate(b"\x10\x11", timeout=30)
        finally:
            it.kill()
    s.done(subprocess.CompletedProcess(argv, it.returncode, "", complaint.decode()))


def pause(s: Stage) -> None:
    """Everything stands still, but for the clock."""
    beats, going = s.files / "rw/beats", s.files / "rw/going"
    going.touch()
    beat = "while [ -e /rw/going ]; do echo; sleep 0.1; done >/rw/beats"
    s.exec("-d", s.idle, "sh", "-c", beat)
    until(lambda: beats.exists() and beats.stat().st_size > 1)
    s.vmm.run("pause", s.idle)
    assert s.vmm.inspect(s.idle)["State"]["Status"] == "paused"
    assert s.exec(s.idle, "true", check=False).returncode != 0
    seen = beats.stat().st_size
    time.sleep(3)
    assert beats.stat().st_size == seen
    s.vmm.run("unpause", s.idle)
    until(lambda: beats.stat().st_size > seen)
    until(lambda: abs(time.time() - float(s.sh("date +%s"))) < 2)
    going.unlink()


def statistics(s: Stage) -> None:
    shown = s.vmm.out("stats", "--no-stream", "--format", "{{json .}}", s.idle)
    values = json.loads(shown)
    assert values["Name"] == s.idle and int(values["PIDs"]) >= 2
    assert re.fullmatch(r"[0-9.]+%", values["CPUPerc"])


def top(s: Stage) -> None:
    lines = s.vmm.out("top", s.idle).splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert any("sh -c echo started" in line for line in lines[1:])


def copy(s: Stage) -> None:
    (s.files / "tree/below").mkdir(parents=True)
    (s.files / "tree/below/file").write_text("copied\n")
    (s.files / "tree/link").symlink_to("below/file")
    s.vmm.run("cp", str(s.files / "tree"), f"{s.idle}:/work/")
    assert s.sh("cat /work/tree/link; stat -c %u /work/tree/below") == "copied\n0"
    s.sh("echo back >/work/tree/below/file")
    s.vmm.run("cp", f"{s.idle}:/work/tree/below/file", str(s.files / "back"))
    assert (s.files / "back").read_text() == "back\n"
    assert s.vmm.run("cp", f"{s.idle}:/no/such", str(s.files), check=False).returncode == 1


def copy_paused(s: Stage) -> None:
    got = s.files / "paused"
    s.vmm.run("pause", s.idle)
    try:
        s.done(s.vmm.run("cp", f"{s.idle}:/etc/hostname", str(got), check=False))
        s.done(s.vmm.run("cp", str(got), f"{s.idle}:/work/paused", check=False))
    finally:
        s.vmm.run("unpause", s.idle)
    assert s.sh("cmp /etc/hostname /work/paused && echo same") == "same"


def update(s: Stage) -> None:
    s.vmm.run("update", "-m", "192m", s.idle)
    assert s.vmm.inspect(s.idle)["HostConfig"]["Memory"] == 192 << 20

    def smaller() -> bool:
        shown = s.vmm.out("stats", "--no-stream", "--format", "{{.MemUsage}}", s.idle)
        limit = re.search(r"/ ([0-9.]+)MiB", shown)
        return bool(limit) and float(limit[1] if limit else 999) <= 192

    until(smaller)


def shown(s: Stage) -> None:
    line = s.vmm.out(
        "ps", "--filter", f"name={s.idle}", "--format", "{{.Names}}|{{.Image}}|{{.State}}"
    )
    assert line == f"{s.idle}|busybox|running"
    found = s.vmm.inspect(s.idle)
    assert found["Config"]["Labels"]["kind"] == "shared"
    assert found["State"]["Running"] is True
    assert "80/tcp" in found["NetworkSettings"]["Ports"]
    for path in found["GraphDriver"]["Data"].values():
        assert Path(path).exists(), "where its changes are kept"
    network = json.loads(s.vmm.out("network", "inspect", "bridge"))[0]["Containers"]
    address = found["NetworkSettings"]["IPAddress"]
    assert network[found["Id"]]["IPv4Address"].startswith(f"{address}/")
    assert "started" in s.vmm.out("logs", "-t", s.idle)


def metadata(s: Stage) -> None:
    s.vmm.run("meta", "set", s.idle, "owner=Zoë <&>", "note=tab\tand\x01control")
    assert s.vmm.out("meta", "get", s.idle, "owner") == "Zoë <&>"
    s.vmm.run("meta", "rm", s.idle, "note")


# ---- bodies with workloads of their own


def exit_codes(s: Stage) -> None:
    done = s.run(
        "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def cannot_execute(s: Stage) -> None:
    assert s.run("--network", "none", "busybox", "no-such-program", check=False).returncode == 127


def standard_input(s: Stage) -> None:
    text = "line\n" * 100_000
    assert s.run("-i", "--network", "none", "busybox", "cat", input=text).stdout == text


def terminal(s: Stage) -> None:
    options = ("run", "--rm", "-it", "--backend", s.backend, "--network", "none")
    shown = on_terminal(s.vmm.argv(*options, "busybox", "sh", "-c", "tty; stty size"))
    assert re.search(r"/dev/(pts/0|console)", shown) and "33 111" in shown


def read_only(s: Stage) -> None:
    script = "touch /x 2>/dev/null && echo writable; id -u; echo ok >/tmp/x && cat /tmp/x"
    options = ("--read-only", "--tmpfs", "/tmp", "-u", "daemon", "--network", "none")
    assert s.run(*options, "busybox", "sh", "-c", script).stdout == "1\nok\n"


def stop_and_start(s: Stage) -> None:
    name = f"life-{s.backend}"
    script = "cat /kept 2>/dev/null; echo was >/kept; trap 'echo bye; exit 3' TERM; echo up; " \
        "while :; do sleep 0.1; done"  # fmt: skip
    s.start(name, "--network", "none", "busybox", "sh", "-c", script)
    until(lambda: "up" in s.vmm.out("logs", name))
    s.vmm.run("stop", name)
    state = s.vmm.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 3, False)
    assert s.vmm.out("wait", name) == "3"
    s.vmm.run("start", name)
    until(lambda: s.vmm.out("logs", name).endswith("was\nup"))
    s.vmm.run("kill", name)
    assert s.vmm.inspect(name)["State"]["ExitCode"] == 137
    s.vmm.run("rm", name)


def copy_while_off(s: Stage) -> None:
    name, note = f"off-{s.backend}", s.files / "note"
    note.write_text("carried in\n")
    script = "cat /note; cp /note /out/answer; mkdir /out/work/d; echo kept >/out/work/d/file"
    volume = f"{s.volume}:/out/work"
    s.vmm.run(
        "create", "--backend", s.backend, "--name", name, "--network", "none", "-v", volume,
        "busybox", "sh", "-c", script,
    )  # fmt: skip
    s.vmm.run("cp", str(note), f"{name}:/")
    assert s.vmm.out("start", "-a", name) == "carried in"
    s.vmm.run("cp", f"{name}:/out", str(s.files))
    assert (s.files / "out/answer").read_text() == "carried in\n"
    assert (s.files / "out/work/d/file").read_text() == "kept\n"
    s.vmm.run("rm", name)


def restart_policy(s: Stage) -> None:
    name = f"again-{s.backend}"
    s.start(name, "--network", "none", "--restart", "on-failure:1", "busybox", "false")
    assert s.vmm.out("wait", name) == "1"
    assert s.vmm.inspect(name)["RestartCount"] == 1
    s.vmm.run("rm", name)


def health(s: Stage) -> None:
    name = f"health-{s.backend}"
    s.start(
        name, "--health-cmd", "echo looked; test -e /tmp/well", "--health-interval", "200ms",
        "--health-retries", "2", "--network", "none", "busybox", "sleep", "1000",
    )  # fmt: skip

    def found() -> dict[str, Any]:
        state: dict[str, Any] = s.vmm.inspect(name)["State"]["Health"]
        return state

    until(lambda: found()["Status"] == "unhealthy")
    last = found()["Log"][-1]
    assert (last["ExitCode"], last["Output"]) == (1, "looked\n")
    assert s.vmm.run("exec", name, "touch", "/tmp/well").returncode == 0
    until(lambda: found()["Status"] == "healthy")
    assert "(healthy)" in s.vmm.out("ps", "--filter", f"name={name}", "--filter", "health=healthy")
    s.vmm.run("rm", "-f", name)


def own_init(s: Stage) -> None:
    script = "(sleep 0.2 &) ; sleep 0.6; ps -o stat,comm | grep -c '^Z'"
    done = s.run("--init", "--network", "none", "busybox", "sh", "-c", script, check=False)
    assert done.stdout == "0\n"


def privileged(s: Stage) -> None:
    """The nodes of the host, or of the guest: more than every workload has."""
    script = "mkdir /m && mount -t tmpfs none /m && echo mounted; head -c 1 /dev/kmsg | wc -c; "
    script += "find /dev -type b -o -type c | grep -c -v /dev/pts"
    done = s.run("--privileged", "--network", "none", "busybox", "sh", "-c", script)
    mounted, read, nodes = done.stdout.split()
    assert (mounted, read) == ("mounted", "1")
    assert int(nodes) > 10, "six every workload has"


def host_network(s: Stage) -> None:
    assert "up0" in s.run("--network", "host", "busybox", "ip", "link").stdout


def device(s: Stage) -> None:
    done = s.run("--device", "/dev/fuse", "--network", "none", "busybox", "ls", "/dev/fuse")
    assert done.stdout == "/dev/fuse\n"


def cpus(s: Stage) -> None:
    """What a program takes itself to have: its quota, or the processors that it sees."""
    script = (
        "cd /sys/fs/cgroup; nproc; cat cpu.max 2>/dev/null || "
        "cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us 2>/dev/null || echo max"
    )

    def given(text: str) -> float:
        processors, quota, *period = text.split()
        return int(quota) / int(period[0]) if quota.isdigit() else int(processors)

    assert given(s.sh(script)) == 1
    done = s.run("--cpus", "2", "--network", "none", "busybox", "sh", "-c", script)
    assert given(done.stdout) == 2


def shared_propagation(s: Stage) -> None:
    """What the host mounts later is there as well."""
    name, place = f"shared-{s.backend}", s.files / "shared"
    place.mkdir()
    with mounted(place):
        mount = f"type=bind,source={place},target=/m,bind-propagation=rslave"
        s.start(name, "--mount", mount, "--network", "none", "busybox", "sleep", "1000")
        (place / "later").mkdir()
        with mounted(place / "later"):
            (place / "later/file").write_text("seen\n")
            assert s.vmm.out("exec", name, "cat", "/m/later/file") == "seen"
        assert s.vmm.run("exec", name, "cat", "/m/later/file", check=False).returncode == 1
        s.vmm.run("rm", "-f", name)


class Case(NamedTuple):
    title: str
    body: Callable[[Stage], None]
    #: What one sees at the prompt.
    example: str


SHARED = (
    Case("exit codes of `exec`", exec_code, "vmm exec NAME CMD"),
    Case("streams of `exec`, unchanged and apart", exec_streams, "vmm exec -i NAME cat"),
    Case("a terminal of the caller's size", exec_terminal, "vmm exec -it NAME sh"),
    Case("user, environment and directory of `exec`", exec_user, "vmm exec -u -e -w"),
    Case("host name, /etc/hosts, /etc/hostname", names, "-h"),
    Case("environment, working directory, pid 1 is the command", process, "-e -w"),
    Case("bind mounts: read-only, single files, owners, modes", binds, "-v /host:/inside:ro"),
    Case("named volumes", volume, "-v name:/inside"),
    Case("tmpfs and /dev/shm with their sizes", tmpfs, "--tmpfs --shm-size"),
    Case("resource limits, sysctls, processes", limits, "--ulimit --sysctl --pids-limit"),
    Case("capabilities, seccomp, masked and read-only paths", confined, "--cap-drop"),
    Case("a limit of memory", memory, "-m"),
    Case("published ports", published, "-p"),
    Case("a serial console", console, "vmm console"),
    Case("pause and unpause", pause, "vmm pause"),
    Case("statistics", statistics, "vmm stats"),
    Case("list of processes", top, "vmm top"),
    Case("copying files in and out while it runs", copy, "vmm cp"),
    Case("copying files in and out while it is paused", copy_paused, "vmm cp"),
    Case("ps, inspect, logs", shown, "vmm ps"),
    Case("metadata", metadata, "vmm meta"),
    Case("less memory while it runs", update, "vmm update -m"),
)  # fmt: skip

OWN = (
    Case("exit code and both streams of `run`", exit_codes, "vmm run --rm"),
    Case("a command that is not there: 127", cannot_execute, "vmm run --rm"),
    Case("standard input to its end", standard_input, "vmm run -i"),
    Case("a terminal", terminal, "vmm run -it"),
    Case("read-only root, user of the image", read_only, "--read-only -u"),
    Case("stop with grace, wait, start again with its files, kill", stop_and_start, "vmm stop"),
    Case("copying files in and out while it is off", copy_while_off, "vmm cp"),
    Case("restart policies", restart_policy, "--restart on-failure:1"),
    Case("health checks", health, "--health-cmd"),
    Case("an init that reaps", own_init, "--init"),
    Case("privileged", privileged, "--privileged"),
    Case("CPUs", cpus, "--cpus"),
    Case("the host's network", host_network, "--network host"),
    Case("devices of the host", device, "--device"),
    Case("mount propagation", shared_propagation, "bind-propagation=rslave"),
)  # fmt: skip
