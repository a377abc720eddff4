"""A guest takes seconds to boot: what other commands, keys and signals do in that time."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance, until

#: Set-up is apart: it starts libvirt and fetches a kernel.
pytestmark = pytest.mark.timeout(60, func_only=True)
GUEST = ["--backend", "qemu", "--network", "none", "--name", "early", "busybox"]


@pytest.fixture
def vmm(machines: Instance) -> Iterator[Instance]:
    """The instance with guests; nothing may be left of what a test started."""
    yield machines
    for workload in machines.run("ps", "-aq", "--no-trunc").stdout.split():
        machines.run("rm", "-fv", workload)
    assert machines.traces() == []
    assert machines.mark not in machines.inside("virsh", "list", "--all").stdout


def booting(vmm: Instance, *words: str, **options: object) -> subprocess.Popen[bytes]:
    """A client that runs a guest, once its emulator runs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    client = vmm.popen("run", *words, *GUEST, "sleep", "100", **pipes)
    until(lambda: bool(list(Path("/run/libvirt/qemu").glob(f"{vmm.mark}-*.pid"))))
    return client


def status(vmm: Instance) -> str:
    return vmm.out("ps", "-a", "--format", "{{.State}} {{.Status}}")


@pytest.mark.parametrize(
    "command, code", [(["stop"], 143), (["stop", "-t", "0"], 137), (["kill"], 137)]
)
def test_ended_by_another_command(vmm: Instance, command: list[str], code: int) -> None:
    client = booting(vmm, "-d")
    vmm.run(*command, "early")
    out, errors = client.communicate(timeout=20)
    assert (client.returncode, out) == (code, b"")
    assert errors == b"vmm: the workload was stopped while it was being started\n"
    assert status(vmm).startswith(f"exited Exited ({code})")


def test_removed_by_another_command(vmm: Instance) -> None:
    client = booting(vmm, "-d")
    vmm.run("rm", "-f", "early")
    assert client.wait(20) == 137
    assert status(vmm) == ""
    client.communicate()


def test_a_signal_to_the_client_ends_it(vmm: Instance) -> None:
    client = booting(vmm, "--rm")
    client.send_signal(signal.SIGINT)
    assert client.communicate(timeout=20) == (b"", b"")
    assert client.returncode == 130
    assert status(vmm) == ""


def test_the_power_button_is_a_stop(vmm: Instance) -> None:
    """``virsh shutdown``, as libvirt-guests.service does it when the host goes down."""
    script = "trap 'echo told; exit 5' INT; echo up; while :; do sleep 0.1; done"
    words = ["--restart", "always", "--stop-signal", "INT", *GUEST, "sh", "-c", script]
    workload = vmm.out("run", "-d", *words)
    until(lambda: vmm.out("logs", "early") == "up")
    vmm.inside("virsh", "-c", "qemu:///system", "shutdown", f"{vmm.mark}-{workload[:12]}")
    until(lambda: status(vmm).startswith("exited Exited (5)"))
    assert vmm.out("logs", "early") == "up\ntold"
    assert vmm.inspect("early")["State"]["Error"] == ""
    vmm.run("start", "early")  # it comes back at the next boot, or when asked for
    assert status(vmm).startswith("running")


def test_detached_while_it_boots(vmm: Instance) -> None:
    """It is not to be removed without force, and a start waits for it."""
    master, slave = pty.openpty()
    client = booting(vmm, "-it", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, b"\x10\x11")
    assert client.wait(20) == 0
    os.close(master)
    refused = vmm.run("rm", "early", check=False)
    assert refused.returncode == 1 and "being started" in refused.stderr
    vmm.run("start", "early")
    assert status(vmm).startswith("running Up")
    assert vmm.out("exec", "early", "echo", "there") == "there"
