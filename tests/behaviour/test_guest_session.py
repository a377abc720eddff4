"""Guests of one user's libvirt: QEMU has that user's rights alone, and the rest is vmm's."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from tests.instance import Instance, until

#: Set-up is apart: it starts a libvirtd, which looks at every emulator first.
pytestmark = pytest.mark.timeout(60, func_only=True)
USER = pwd.getpwnam("nobody")
TUN = Path("/dev/net/tun")


@pytest.fixture
def tun() -> Iterator[Path]:
    """The device of taps, with the mode it had given back."""
    mode = stat.S_IMODE(TUN.stat().st_mode)
    yield TUN
    TUN.chmod(mode)


@pytest.fixture
def session(machines: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A libvirtd of ``nobody``'s in the instance's network namespace; its socket, which the
    settings name."""
    home = Path(tempfile.mkdtemp(prefix="vmm-session-", dir="/var/tmp"))
    os.chown(home, USER.pw_uid, USER.pw_gid)
    names = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HOME")
    env = {**os.environ, **dict.fromkeys(names, str(home))}
    who = ["setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups"]
    argv = [*machines.enter, *who, "libvirtd"]
    socket = home / "libvirt/libvirt-sock"
    uri = f"qemu:///session?socket={socket}"
    monkeypatch.setenv("VMM_LIBVIRT_URI", uri)
    with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL) as daemon:
        try:
            until(socket.exists)
            assert machines.inside("virsh", "-c", uri, "uri").returncode == 0
            yield socket
        finally:
            daemon.kill()
            end_logger(home / "libvirt/virtlogd.pid")
    rmtree(home)


def end_logger(file: Path) -> None:
    """libvirtd starts one for QEMU's output, which would stay for two minutes."""
    if file.exists():
        os.kill(int(file.read_text()), signal.SIGTERM)
        until(lambda: not file.exists())


def of_whom(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


def refused(vmm: Instance, *words: str) -> str:
    done = vmm.run("run", "--rm", "--backend", "qemu", *words, "busybox", "true", check=False)
    assert done.returncode == 125, done
    return done.stderr


SERVE = "trap 'exit 4' TERM; mkdir /w; echo served >/w/index.html; httpd -p 80 -h /w; "


def test_a_guest_of_a_session(machines: Instance, session: Path, tun: Path) -> None:
    """One boot, of a guest on the bridge; what its libvirt cannot do is said beforehand."""
    vmm = machines
    assert "a session of libvirt" in refused(vmm, "--cpus", "0.5")
    assert "vmm cp" in refused(vmm, "-v", "/srv:/srv")
    lines = [line.split() for line in vmm.out("backends").splitlines() if line[:5] == "qemu "]
    assert [words[4] for words in lines if words[1] == "parts"] == ["no"], lines
    assert "not the system's" in vmm.run("system", "libvirt", "stop", check=False).stderr
    tun.chmod(0o600)
    assert f"chmod 0666 {tun}" in refused(vmm)
    tun.chmod(0o666)
    assert vmm.traces() == []

    script = SERVE + "while :; do sleep 0.1; done"
    start = ["run", "-d", "--backend", "qemu", "--name", "c", "-p", "127.0.0.1:8081:80"]
    workload = vmm.out(*start, "busybox", "sh", "-c", script)
    assert of_whom(vmm.inspect("c")["State"]["Pid"]) == USER.pw_uid
    disk = (vmm.root / "workloads" / workload / "disk.raw").stat()
    assert (disk.st_uid, stat.S_IMODE(disk.st_mode)) == (USER.pw_uid, 0o600)
    fetch = ["wget", "-q", "-T", "5", "-O", "-", "http://127.0.0.1:8081/"]
    until(lambda: vmm.inside(*fetch).stdout == "served\n")
    assert vmm.out("exec", "c", "cat", "/w/index.html") == "served"

    # What ends a guest, and removes it, needs no libvirtd.
    daemon = int((session.parent / "libvirtd.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    begun = time.monotonic()
    vmm.run("stop", "c")
    assert time.monotonic() - begun < 5
    state = vmm.inspect("c")["State"]
    assert (state["ExitCode"], state["Error"]) == (4, "")
    removed = vmm.run("rm", "c")
    assert "keeps the definition of c" in removed.stderr
    assert "system check --repair" in removed.stderr
    assert vmm.traces() == []


def test_roots_own_session_is_the_systems(
    machines: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt itself has it so: root's connections all go to the system's daemon."""
    monkeypatch.setenv("VMM_LIBVIRT_URI", "qemu:///session")
    assert "qemu:///session: answers" in machines.out("system", "libvirt", "status")
    assert machines.out("system", "libvirt", "start") == ""
    made = machines.out("create", "--backend", "qemu", "--name", "c", "busybox")
    shown = machines.inside("virsh", "-c", "qemu:///system", "list", "--all", "--name").stdout
    assert f"{machines.mark}-{made[:12]}" in shown.split()
    machines.run("rm", "c")
