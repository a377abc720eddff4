"""What is particular to virtual machines: choice, life beside libvirt, files, names, disks."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance, until

#: Set-up is apart: it starts libvirt and fetches a kernel.
pytestmark = pytest.mark.timeout(60, func_only=True)
URI = "qemu:///system"


@pytest.fixture
def vmm(machines: Instance) -> Iterator[Instance]:
    """The instance with guests; nothing may be left of what a test started."""
    yield machines
    for workload in machines.run("ps", "-aq", "--no-trunc").stdout.split():
        machines.run("rm", "-fv", workload)
    assert machines.traces() == []
    assert machines.mark not in machines.inside("virsh", "-c", URI, "list", "--all").stdout


def start(vmm: Instance, name: str, *words: str) -> str:
    return vmm.out("run", "-d", "--backend", "qemu", "--name", name, *words)


def domain(vmm: Instance, workload: str) -> str:
    return f"{vmm.mark}-{workload[:12]}"


def test_kvm_is_never_emulated_and_vm_says_what_it_takes(vmm: Instance) -> None:
    refused = vmm.run("run", "--rm", "--backend", "kvm", "busybox", "true", check=False)
    assert refused.returncode == 125, refused.stderr
    assert "backend kvm" in refused.stderr and "--backend qemu" in refused.stderr
    made = vmm.run("create", "--backend", "vm", "--name", "chosen", "busybox", "true")
    assert "qemu" in made.stderr and "kvm" in made.stderr
    assert vmm.inspect("chosen")["State"]["Status"] == "created"
    words = [line.split() for line in vmm.out("backends").splitlines()]
    assert {"kvm": "no", "qemu": "yes"}.items() <= {
        w[0]: w[2] for w in words if w[0] == w[1]
    }.items()


WEB = """\
FROM busybox
LABEL purpose=web
RUN mkdir -p /srv/www && chown 1000:1000 /srv/www
COPY index.html /srv/www/
VOLUME ["/srv/data", "/srv/log"]
EXPOSE 80
CMD ["sh", "-c", "echo serving >/srv/log/started; exec httpd -f -p 80 -h /srv/www"]
"""


def test_the_walk_through_as_a_virtual_machine(vmm: Instance, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(WEB)
    (context / "index.html").write_text("<p>served</p>\n")
    vmm.run("build", "-t", "web", str(context))
    for name in ("data", "log"):
        (tmp_path / name).mkdir()
    begun = vmm.run(
        "run", "-d", "--rm", "--backend", "vm", "--name", "web", "-p", "8080:80",
        "-v", f"{tmp_path}/data:/srv/data", "-v", f"{tmp_path}/log:/srv/log", "web",
    )  # fmt: skip
    assert len(begun.stdout.strip()) == 64

    def served(address: str) -> bool:
        done = vmm.inside("wget", "-q", "-T", "5", "-O", "-", f"http://{address}/")
        return done.stdout == "<p>served</p>\n"

    until(lambda: served("127.0.0.1:8080"))
    assert served("[::1]:8080")
    assert served(vmm.inspect("web")["NetworkSettings"]["IPAddress"])
    assert (tmp_path / "log/started").read_text() == "serving\n"
    vmm.run("exec", "web", "sh", "-c", "echo kept >/srv/data/file")
    assert (tmp_path / "data/file").read_text() == "kept\n"
    assert vmm.out("exec", "web", "stat", "-c", "%u:%g", "/srv/www") == "1000:1000"
    assert "127.0.0.1:8080->80/tcp" in vmm.out("ps")
    # A container and a guest reach each other by name.
    script = "wget -q -O - http://web/"
    assert vmm.out("run", "--rm", "busybox", "sh", "-c", script) == "<p>served</p>"
    vmm.run("run", "-d", "--name", "other", "busybox", "sleep", "100")
    until(lambda: "other" in vmm.out("exec", "web", "cat", "/etc/hosts"))
    vmm.run("exec", "web", "ping", "-c", "1", "-W", "5", "other")
    vmm.run("stop", "-t", "1", "web")
    assert vmm.out("ps", "-aq", "--filter", "name=web") == ""
    vmm.run("rm", "-f", "other")
    vmm.run("rmi", "-f", "web")


def test_life_beside_libvirt(vmm: Instance) -> None:
    """One boot: a lost shim, a restarted libvirtd, a lost index, and the end by another's hand."""
    script = "echo up; while :; do sleep 0.2; done"
    workload = start(vmm, "life", "--network", "none", "busybox", "sh", "-c", script)
    until(lambda: "up" in vmm.out("logs", "life"))
    assert vmm.out("exec", "life", "cat", "/sys/fs/cgroup/pids.max") == "4096"
    state = json.loads((vmm.root / "workloads" / workload / "state.json").read_text())
    os.kill(state["shim_pid"], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{state['shim_pid']}").exists())
    assert vmm.out("ps", "--format", "{{.Names}} {{.State}}") == "life running"
    assert vmm.out("exec", "life", "echo", "still here") == "still here"
    again = json.loads((vmm.root / "workloads" / workload / "state.json").read_text())
    assert (again["status"], again["started"]) == ("running", state["started"])

    vmm.run("system", "libvirt", "stop", timeout=60)
    assert vmm.out("exec", "life", "echo", "without libvirtd") == "without libvirtd"
    vmm.run("system", "libvirt", "start", timeout=120)
    assert vmm.out("ps", "--format", "{{.Names}} {{.State}}") == "life running"

    vmm.run("meta", "set", "life", "note=Zoë\x01")
    shown = vmm.inside("virsh", "-c", URI, "dumpxml", "--inactive", domain(vmm, workload)).stdout
    assert "Zo\\u00eb\\u0001" in shown

    discards(vmm, vmm.root / "workloads" / workload / "disk.raw")
    keeps_time(vmm)
    goes_on_after_others_suspended_it(vmm, domain(vmm, workload))

    vmm.inside("virsh", "-c", URI, "destroy", domain(vmm, workload))
    until(lambda: vmm.inspect("life")["State"]["Status"] == "exited")
    ended = vmm.inspect("life")["State"]
    assert ended["ExitCode"] == 137 and "destroyed" in ended["Error"], ended

    (vmm.root / "workloads" / workload / "workload.json").unlink()
    (vmm.root / "index.db").unlink()
    vmm.run("system", "rebuild")
    found = vmm.inspect("life")
    assert found["Id"] == workload and vmm.out("meta", "get", "life", "note") == "Zoë\x01"
    vmm.run("start", "life")
    ends_although_others_suspended_it(vmm, domain(vmm, workload))
    vmm.run("rm", "life")
    assert not (vmm.root / "workloads" / workload).exists()


def _owners(place: Path) -> dict[str, tuple[str, str, str]]:
    """Owner, group and mode by path, relative to ``place``."""
    found = {}
    for path in [place, *place.rglob("*")]:
        status = path.lstat()
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        found[str(path.relative_to(place))] = (owner, group, mode)
    return found


def discards(vmm: Instance, disk: Path) -> None:
    """What is removed inside is given back to the host."""
    vmm.run("exec", "life", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=24 && sync")
    assert disk.stat().st_blocks * 512 > 24 << 20
    vmm.run("exec", "life", "sh", "-c", "rm /big && sync")
    until(lambda: disk.stat().st_blocks * 512 < 4 << 20)


def keeps_time(vmm: Instance) -> None:
    """A clock that stood still while the guest was paused is set."""

    def behind() -> float:
        before = time.time()
        return before - float(vmm.out("exec", "life", "date", "+%s"))

    vmm.run("pause", "life")
    time.sleep(4)
    vmm.run("unpause", "life")
    until(lambda: behind() < 2)


def goes_on_after_others_suspended_it(vmm: Instance, name: str) -> None:
    vmm.inside("virsh", "-c", URI, "suspend", name)
    assert vmm.inspect("life")["State"]["Status"] == "paused"
    refused = vmm.run("exec", "life", "true", check=False)
    assert refused.returncode == 1 and "vmm unpause life" in refused.stderr, refused
    vmm.run("unpause", "life")
    assert vmm.out("exec", "life", "echo", "on") == "on"


def ends_although_others_suspended_it(vmm: Instance, name: str) -> None:
    """It goes on to end in order."""
    vmm.inside("virsh", "-c", URI, "suspend", name)
    began = time.monotonic()
    listed = vmm.run("top", "life", check=False)
    assert listed.returncode == 1 and "suspended through libvirt" in listed.stderr, listed
    vmm.run("stop", "-t", "1", "life")
    assert time.monotonic() - began < 10
    state = vmm.inspect("life")["State"]
    assert (state["Status"], state["Error"]) == ("exited", ""), state


def test_files_are_no_wider_than_needed(vmm: Instance) -> None:
    """Before, while and after a guest runs: what it shares belongs to root, its disk to QEMU."""
    workload = vmm.out(
        "create", "--backend", "qemu", "--name", "files", "--network", "none", "busybox", "sleep",
        "100",
    )  # fmt: skip
    xml = vmm.inside("virsh", "-c", URI, "capabilities").stdout
    label = xml.split("<baselabel type='kvm'>+")[1].split("<")[0]
    uid, gid = (int(part) for part in label.split(":+"))
    qemu, group = pwd.getpwuid(uid).pw_name, grp.getgrgid(gid).gr_name
    directory = vmm.root / "workloads" / workload

    def check() -> None:
        assert _owners(directory)["."] == ("root", group, "0710")
        assert _owners(directory)["disk.raw"] == (qemu, group, "0600")
        assert _owners(directory)["workload.json"][0] == "root"
        for place in ("guest", "kernels"):
            for path, (owner, owning, mode) in _owners(vmm.root / place).items():
                kind = vmm.root / place / path
                if "modules" in kind.parent.parts:
                    continue  # below a directory of root's alone
                if kind.is_dir() and owning == group:
                    assert (owner, mode) == ("root", "0710"), path
                elif owning == group:
                    assert (owner, mode) == ("root", "0640"), path
                else:
                    assert owner == "root" and int(mode, 8) & 0o007 == 0, (path, mode)

    check()
    assert os.stat(directory / "disk.raw").st_blocks * 512 <= 2 << 20
    vmm.run("start", "files")
    check()
    run = _owners(vmm.run_dir / workload[:12])
    assert run["."] == ("root", group, "0710")
    assert run["ctl.sock"] == ("root", "root", "0600")
    channel = next(mode for path, mode in run.items() if path.endswith("channel.sock"))
    assert channel == ("root", group, "0660")
    vmm.run("kill", "files")
    check()
    vmm.run("rm", "files")


def test_image_files_arrive_as_they_are(vmm: Instance, tmp_path: Path) -> None:
    """Owners, modes, links, sparse files: a guest sees what a container sees."""
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\n"
        "RUN mkdir -p /t/d && chmod 2750 /t/d && chown 12:34 /t/d && echo x >/t/f && chmod 4711 "
        "/t/f && ln /t/f /t/hard && ln -s ../etc/passwd /t/soft && mknod /t/null c 1 3 && mkfifo "
        "/t/fifo && dd if=/dev/zero of=/t/sparse bs=1 count=1 seek=8388607 2>/dev/null && "
        "touch -d '2001-02-03 04:05:06' /t/old && printf 'a\\nb' >'/t/odd name' && "
        "chown 5:6 / && chmod 1751 /\n"
    )
    vmm.run("build", "-t", "files", str(tmp_path))
    script = (
        "stat -c '%f %u %g' /; cd /t; stat -c '%n %f %h %u %g %Y' d .; "
        "for f in f hard soft null fifo sparse old odd*; do "
        "stat -c '%n %f %h %u %g %s %t %T %Y' \"$f\"; done; "
        "ls -i f hard | while read i n; do echo $i; done | sort -u | wc -l; readlink soft"
    )
    options = ("--rm", "--network", "none")
    there = vmm.out("run", *options, "files", "sh", "-c", script)
    inside = vmm.out("run", *options, "--backend", "qemu", "files", "sh", "-c", script)
    assert inside == there
    vmm.run("rmi", "-f", "files")


def test_what_a_guest_cannot_be_is_refused(vmm: Instance) -> None:
    small = vmm.run("run", "--rm", "--backend", "qemu", "-m", "16m", "busybox", "true", check=False)
    assert small.returncode == 125 and "--memory" in small.stderr, small.stderr
    host = ("run", "--rm", "--backend", "qemu", "--network", "host", "busybox", "true")
    refused = vmm.run(*host, check=False)
    assert refused.returncode == 125 and "--backend container" in refused.stderr
