"""What fingers trained on Docker type: combinations, idioms of scripts, and odd surroundings."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.instance import Instance


def shell(vmm: Instance, script: str) -> subprocess.CompletedProcess[str]:
    """A bash script in which ``vmm`` is the instance's command."""
    words = " ".join(f"'{word}'" for word in vmm.argv())
    text = f'vmm() {{ {words} "$@"; }}\n{script}'
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, timeout=50, check=False
    )


class Terminal:
    """A vmm command on a pseudo-terminal of its own."""

    def __init__(self, vmm: Instance, *args: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            argv = vmm.argv(*args)
            os.execvp(argv[0], argv)

    def until(self, text: bytes) -> bytes:
        """What is shown, up to ``text``."""
        shown = b""
        end = time.monotonic() + 10
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self.fd, 4096)
                except OSError:  # the other side is gone
                    data = b""
                assert data, shown
                shown += data
        return shown

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def code(self) -> int:
        """The exit code of the command, which must end soon."""
        end = time.monotonic() + 10
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < end, "still running"
            time.sleep(0.02)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(found[1])


def test_detach_attach_twice_and_end(vmm: Instance) -> None:
    first = Terminal(vmm, "run", "-it", "--network=none", "--name", "tty", "busybox")
    first.until(b"# ")
    first.type(b"\x10\x11")
    first.until(b"read escape sequence")
    assert first.code() == 0
    assert vmm.out("ps", "--format", "{{.Names}}") == "tty"
    both = [Terminal(vmm, "attach", "tty") for _ in range(2)]
    time.sleep(0.4)
    both[0].type(b"echo one$((1+1))\n")
    for terminal in both:
        terminal.until(b"one2\r")
    both[1].type(b"exit 3\n")
    assert [terminal.code() for terminal in both] == [3, 3]


def test_closed_standard_streams(vmm: Instance) -> None:
    done = shell(
        vmm,
        """
        vmm run --rm --network=none busybox echo hidden >&-; echo $?
        vmm ps -a >&-; echo $?
        vmm run --rm --network=none busybox sh -c 'echo a; echo b >&2; exit 4' <&- >&- 2>&-; echo $?
        vmm run --rm -i --network=none busybox cat <&-; echo $?
        """,
    )
    assert (done.stdout, done.stderr) == ("0\n0\n4\n0\n", "")


def test_output_that_cannot_be_written_is_an_error(vmm: Instance) -> None:
    run = "run --rm --network=none busybox sh -c"
    done = shell(
        vmm,
        f"vmm {run} 'echo x' >/dev/full; echo $?; vmm {run} 'echo x; exit 5' >/dev/full; echo $?",
    )
    assert done.stdout == "125\n5\n"
    assert "could not be written: No space left on device" in done.stderr


def test_pipes_end_as_pipes_do(vmm: Instance) -> None:
    done = shell(
        vmm,
        """
        vmm run --rm --network=none busybox yes | head -n 1; echo ${PIPESTATUS[@]}
        head -c 30000000 /dev/zero | vmm run -i --rm --network=none busybox wc -c
        """,
    )
    assert done.stdout == "y\n141 0\n30000000\n"


def test_several_names_at_once(vmm: Instance) -> None:
    for name in ("one", "two"):
        vmm.run("run", "-d", "--network=none", "--name", name, "busybox", "sleep", "100")
    done = vmm.run("kill", "one", "nope", "two", check=False)
    assert (done.returncode, done.stdout) == (1, "one\ntwo\n")
    assert vmm.out("wait", "one", "two") == "137\n137"
    done = vmm.run("rm", "-f", "nope", "one", check=False)
    assert (done.returncode, done.stdout) == (0, "one\n")
    assert "No such container: nope" in done.stderr
    assert vmm.run("rename", "two", "two", check=False).returncode == 1


def test_names_are_said_as_each_is_done(vmm: Instance) -> None:
    vmm.run("run", "-d", "--network=none", "--name", "quick", "busybox", "true")
    vmm.run("run", "-d", "--network=none", "--name", "slow", "busybox", "sleep", "100")
    vmm.run("wait", "quick")
    waiting = vmm.popen("wait", "quick", "slow", stdout=subprocess.PIPE)
    assert waiting.stdout
    assert select.select([waiting.stdout], [], [], 10)[0], "nothing said about the first"
    assert waiting.stdout.readline() == b"0\n"
    assert waiting.poll() is None
    vmm.run("kill", "slow")
    assert waiting.communicate(timeout=10)[0] == b"137\n"


def test_name_filter_is_a_regular_expression(vmm: Instance) -> None:
    for name in ("db", "db2", "web"):
        vmm.run("create", "--network=none", "--name", name, "busybox", "true")

    def found(pattern: str) -> list[str]:
        filters = ["--filter", f"name={pattern}", "--format", "{{.Names}}"]
        return sorted(vmm.out("ps", "-a", *filters).split())

    assert found("^db$") == found("^/db$") == found("/db$") == ["db"]
    assert found("db") == ["db", "db2"]
    assert found("^(web|db)$") == ["db", "web"]
    broken = vmm.run("ps", "-a", "--filter", "name=(", check=False)
    assert broken.returncode == 125 and "regular expression" in broken.stderr


def test_labels_in_formats(vmm: Instance) -> None:
    vmm.run("create", "--network=none", "--name", "l", "-l", "tier=a,b", "busybox", "true")
    form = '{{.Label "tier"}}|{{.Label "none"}}|{{json .}}'
    tier, none, row = vmm.out("ps", "-a", "--format", form).split("|", 2)
    assert (tier, none, "labels" in json.loads(row)) == ("a,b", "", False)
    labels = '{{.Config.Labels.tier}}|{{.Config.Labels.none}}|{{index .Config.Labels "none"}}'
    assert vmm.out("inspect", "-f", labels, "l") == "a,b|<no value>|"
    typo = vmm.run("inspect", "-f", "{{.Config.Lables.tier}}", "l", check=False)
    assert typo.returncode == 125 and "no field Lables" in typo.stderr
    short = vmm.out("inspect", "-f", '{{printf "%.12s" .Id}}', "l")
    assert short == vmm.out("ps", "-aq")


def test_dangling_volumes_and_what_pruning_freed(vmm: Instance) -> None:
    vmm.run("volume", "create", "idle")
    vmm.run("run", "--network=none", "--name", "user", "-v", "used:/v", "busybox",
            "sh", "-c", "echo 12345 > /v/f; echo 123 > /f")  # fmt: skip
    assert vmm.out("volume", "ls", "-qf", "dangling=true") == "idle"
    assert vmm.out("volume", "ls", "-qf", "dangling=0") == "used"
    assert vmm.run("volume", "ls", "-f", "dangling=x", check=False).returncode == 125
    lines = vmm.out("container", "prune", "-f").splitlines()
    assert lines[0] == "Deleted Containers:" and len(lines[1]) == 64
    assert lines[2:] == ["", "Total reclaimed space: 4B"]
    assert vmm.out("container", "prune", "-f") == "Total reclaimed space: 0B"
    lines = vmm.out("volume", "prune", "-af").splitlines()
    assert lines == ["Deleted Volumes:", "idle", "used", "", "Total reclaimed space: 6B"]


def test_images_newest_first_and_pruned(vmm: Instance, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello\n")
    for tag in ("first", "second"):
        dockerfile = f"FROM busybox\nCOPY f /{tag}\nRUN sleep 1.1\n"
        (tmp_path / "Dockerfile").write_text(dockerfile)
        vmm.run("build", "--network=none", "-t", tag, str(tmp_path))
    order = vmm.out("images", "--format", "{{.Repository}}").split()
    assert order.index("second") < order.index("first") < order.index("busybox")
    image = vmm.out("images", "-q", "--no-trunc", "first")
    vmm.run("tag", "second", "first")
    lines = vmm.out("image", "prune", "-f").splitlines()
    assert lines[0] == "Deleted Images:" and f"Deleted: {image}" in lines
    assert lines[-1] == "Total reclaimed space: 6B"
    vmm.run("rmi", "first", "second")


def test_info_counts_every_workload(vmm: Instance) -> None:
    vmm.run("run", "-d", "--network=none", "--restart=always", "busybox", "false")
    vmm.run("create", "--network=none", "busybox", "true")
    running, stopped = vmm.out(
        "info", "-f", "{{.ContainersRunning}} {{.ContainersStopped}}"
    ).split()
    assert int(running) + int(stopped) == 2


def test_help_is_a_command_too(vmm: Instance) -> None:
    assert vmm.out("help") == vmm.out("--help")
    assert vmm.out("help", "run") == vmm.out("run", "--help")
    assert vmm.out("volume", "help", "ls") == vmm.out("volume", "ls", "--help")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("localhost:5000/Busy", "write localhost:5000/busy"),
        ("BUSYBOX:1", "write busybox:1"),
        ("two words", "is not a repository path"),
    ],
)
def test_the_advice_for_a_reference_can_be_followed(
    vmm: Instance, reference: str, message: str
) -> None:
    done = vmm.run("run", reference, check=False)
    assert done.returncode == 125 and message in done.stderr
