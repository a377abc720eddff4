"""What a workload can see and do, tried from inside (and by exec): kernel, files, processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.instance import Instance
from tests.integration.isolation_lab import LIBEXEC, QUIET, Lab, digests, results

DEFAULT_CAPS = 0xA80425FB
#: Must fail in a workload of default privileges, and how.
REFUSED = {
    "EPERM": "mount remount umount fsopen open_tree mount_setattr pivot_root unshare_user "
    "unshare_mount unshare_cgroup clone_user setns open_by_handle_at keyctl add_key request_key "
    "bpf perf_event_open userfaultfd io_uring_setup init_module finit_module delete_module "
    "kexec_load reboot swapon acct quotactl syslog clock_settime sethostname disk mem kmsg fuse "
    "loop-control vsock",
    "ENOSYS": "clone3_user",
}
#: Files by which the host is changed: absent or not writable.
UNWRITABLE = "sysrq core_pattern uevent_helper release_agent cgroup lift_limit lift_limit2"


def _disk() -> tuple[str, str]:
    device = os.stat("/").st_dev
    return str(os.major(device)), str(os.minor(device))


def _status(text: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}


def test_ways_into_the_kernel_are_refused_in_run_and_exec(lab: Lab) -> None:
    attack = f"/probe calls {' '.join(_disk())}"
    lab.start("guarded", "sleep 100")
    inside = results(lab.sh(attack))
    again = results(lab.vmm.out("exec", "guarded", "sh", "-c", attack))
    assert inside == again
    for errno, names in REFUSED.items():
        assert {name: inside[name] for name in names.split()} == dict.fromkeys(names.split(), errno)
    for name in UNWRITABLE.split():
        assert inside[name] in ("ENOENT", "EROFS", "EACCES", "EPERM"), name
    assert [name for name, outcome in inside.items() if outcome == "ok"] == ["harmless"]


def test_the_same_attacks_succeed_with_every_privilege(lab: Lab) -> None:
    """The probe attacks for real: what is refused above works where nothing forbids it."""
    inside = results(lab.sh("mkdir -p /mnt; /probe kernel", "--privileged"))
    for name in ("mount", "fsopen", "unshare_user", "setns", "keyctl", "sethostname"):
        assert inside[name] == "ok", name


def test_only_the_three_streams_are_open(lab: Lab) -> None:
    lab.start("streams", "sleep 100")
    assert lab.sh("/probe descriptors").split() == ["0", "1", "2"]
    assert lab.vmm.out("exec", "streams", "/probe", "descriptors").split() == ["0", "1", "2"]
    assert lab.sh("/probe descriptors", "--init").split() == ["0", "1", "2"]


def test_the_working_directory_cannot_be_a_descriptor_of_ours(lab: Lab) -> None:
    """CVE-2024-21626, through the option, through a link of the image, and by exec."""
    lab.start("cwd", "ln -s /proc/self/fd /tmp/fds; ln -s /proc/1/root /tmp/root; sleep 100")
    for path in [
        *(f"/proc/self/fd/{number}" for number in range(3, 12)),
        "/tmp/fds/7",
        "/tmp/root",
    ]:
        done = lab.vmm.run("exec", "-w", path, "cwd", "cat", "/secret", "/etc/shadow", check=False)
        assert done.returncode == 126 and done.stdout == "", path
        assert path in done.stderr
    for number in range(6, 9):
        argv = ["run", "--rm", *QUIET, "-w", f"/proc/self/fd/{number}", "busybox", "pwd"]
        done = lab.vmm.run(*argv, check=False)
        assert done.returncode == 125 and f"/proc/self/fd/{number}" in done.stderr, done


@pytest.mark.parametrize("argv", [["/proc/self/exe"], ["/tmp/script"], ["/tmp/link"]])
def test_the_runtime_itself_cannot_be_executed(lab: Lab, argv: list[str]) -> None:
    """CVE-2019-5736: /proc/self/exe as program, as interpreter, behind a link."""
    made = "printf '#!/proc/self/exe\\n' >/tmp/script; chmod +x /tmp/script; "
    lab.start("exe", made + "ln -s /proc/self/exe /tmp/link; sleep 100")
    until(lambda: lab.vmm.run("exec", "exe", "ls", "/tmp/link", check=False).returncode == 0)
    done = lab.vmm.run("exec", "exe", *argv, check=False)
    assert done.returncode == 126 and argv[0] in done.stderr, done
    if argv == ["/proc/self/exe"]:
        done = lab.vmm.run("run", "--rm", *QUIET, "--entrypoint", *argv, "busybox", check=False)
        assert done.returncode == 126, done


def until(condition: object, seconds: float = 10) -> None:
    """Wait for what another process is about to do."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def _ambush(lab: Lab, *options: str) -> set[str]:
    """What a watching workload gets hold of in /proc/PID while processes are brought in."""
    ours: list[str | Path] = [*LIBEXEC.iterdir(), sys.executable]
    before = digests(ours)
    lab.start("lurker", "/probe lurk >/seen 2>&1; sleep 100", *options)
    for _ in range(6):
        lab.vmm.run("exec", "lurker", "sleep", "0.03")
    seen = lab.vmm.out("exec", "lurker", "sh", "-c", "touch /stop; sleep 0.1; cat /seen")
    assert digests(ours) == before
    return set(seen.splitlines())


def test_execs_cannot_be_ambushed(lab: Lab) -> None:
    """CVE-2016-9962, CVE-2019-5736: nothing of the host shows, no program can be written."""
    seen = _ambush(lab)
    assert "exe /bin/sleep" in seen, "the watcher saw no exec at all"
    assert {line for line in seen if line.startswith("exe ")} <= {"exe /bin/sleep", "exe /bin/sh"}
    assert {line for line in seen if line.startswith(("cwd ", "root "))} <= {"cwd /", "root /"}
    assert [line for line in seen if "vmm" in line or str(lab.vmm.root) in line] == []


def test_a_tracer_cannot_write_the_runtime(lab: Lab) -> None:
    """CAP_SYS_PTRACE looks into any process of its namespace; the program stays write-protected."""
    seen = _ambush(lab, "--cap-add", "SYS_PTRACE")
    assert "exe /bin/sleep" in seen
    assert [line for line in seen if "WRITABLE" in line] == []


def test_capabilities_of_run_and_exec(lab: Lab) -> None:
    lab.start("caps", "sleep 100")
    show = ("grep", "-E", "^(Cap|NoNew|Seccomp:)", "/proc/self/status")
    for text in (
        lab.sh(" ".join(f"'{word}'" for word in show)),
        lab.vmm.out("exec", "caps", *show),
    ):
        status = _status(text)
        assert int(status["CapBnd"], 16) & ~DEFAULT_CAPS == 0
        assert status["CapEff"] == status["CapPrm"] == status["CapBnd"]
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert status["Seccomp"] == "2"


def test_other_users_than_root_have_no_capabilities(lab: Lab) -> None:
    lab.start("user", "sleep 100", "-u", "1000:1000")
    show = "grep -E '^(Cap|Uid|Gid|Groups)' /proc/self/status"
    texts = [
        lab.sh(show, "-u", "1000:1000"),
        lab.vmm.out("exec", "user", "sh", "-c", show),
        lab.vmm.out("exec", "-u", "1000:1000", "user", "sh", "-c", show),
    ]
    for text in texts:
        status = _status(text)
        assert [int(status[f"Cap{s}"], 16) for s in ("Inh", "Prm", "Eff", "Amb")] == [0, 0, 0, 0]
        assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
        assert status["Groups"] == ""
    root = lab.vmm.out("exec", "-u", "0", "user", "sh", "-c", show)
    assert int(_status(root)["CapEff"], 16) != 0


def test_nothing_of_the_callers_environment_comes_in(lab: Lab) -> None:
    planted = {
        "SECRET_TOKEN": "planted",
        "VMM_DEBUG": "1",
        "http_proxy": "planted",
        "LD_PRELOAD": "",
    }
    wanted = {"PATH", "HOSTNAME", "HOME"}
    argv = ["run", "-d", "--name", "env", *QUIET, "busybox", "sleep", "100"]
    lab.vmm.run(*argv, env=planted)
    first = lab.vmm.out("exec", "env", "cat", "/proc/1/environ", env=planted)
    second = lab.vmm.out("exec", "env", "env", env=planted)
    assert {pair.partition("=")[0] for pair in first.split("\0") if pair} == wanted
    assert {pair.partition("=")[0] for pair in second.split("\n")} == wanted
    assert "planted" not in first + second


def test_the_callers_keys_are_not_held_inside(lab: Lab) -> None:
    option = ("--security-opt", "seccomp=unconfined")
    callers = int(subprocess.check_output([lab.probe, "keyring"]))
    lab.start("keys", "sleep 100", *option)
    inside = {
        int(lab.sh("/probe keyring", *option)),
        int(lab.vmm.out("exec", "keys", "/probe", "keyring")),
    }
    assert min(inside) > 0 and callers not in inside


def test_masked_and_read_only_paths(lab: Lab) -> None:
    script = """
    for f in interrupts kcore keys latency_stats timer_list timer_stats sched_debug; do
        [ -e /proc/$f ] && [ -n "$(head -c 1 /proc/$f)" ] && echo readable $f
    done
    for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware; do
        [ -d $d ] && [ -n "$(ls -A $d)" ] && echo listed $d
    done
    for f in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run; do
        [ -e $f ] && (: > $f) 2>/dev/null && echo written $f
    done
    touch /proc/sys/x /sys/x /sys/fs/cgroup/x /proc/bus/x 2>/dev/null && echo made
    umount /proc/keys 2>/dev/null && echo unmasked
    (: > /proc/interrupts) && rm /dev/null && mknod /dev/null c 1 5 && head -c 1 /proc/interrupts
    echo done"""
    assert lab.sh(script).split("\n") == ["done", ""]


def test_no_name_of_the_host_or_of_another_workload_can_be_read(lab: Lab) -> None:
    other = lab.start("other-workload", "sleep 100", "-v", "other-volume:/x", "-h", "other-host")
    lab.start("one", "sleep 100")
    script = """
    cat /proc/self/cgroup /proc/1/cgroup /proc/mounts /proc/self/mountinfo /proc/1/environ
    cat /proc/*/cmdline /proc/net/unix 2>/dev/null
    find /sys/fs/cgroup /dev /run /tmp; hostname; cat /etc/hosts /etc/hostname"""
    words = (other, other[:12], "other-workload", "other-host", lab.vmm.mark, os.uname().nodename)
    names = [rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in words]
    for text in (lab.sh(script), lab.vmm.out("exec", "one", "sh", "-c", script)):
        assert [name for name in names if re.search(name, text)] == []
    lines = lab.vmm.out("exec", "one", "cat", "/proc/self/cgroup").splitlines()
    assert {line.split(":", 2)[2] for line in lines} == {"/"}


def _mount_point(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if os.path.ismount(parent))


def test_hierarchies_inside_are_the_workloads_own_and_read_only(lab: Lab) -> None:
    """Of the host's paths only the sources of the bind mounts show in mountinfo, as in Docker."""
    script = "cat /proc/self/mountinfo; echo; find /sys/fs/cgroup -mindepth 2 -type d"
    mounts, _, below = lab.sh(script).partition("\n\n")
    assert below == ""
    roots = {line.split()[4]: line.split()[3] for line in mounts.splitlines()}
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts.splitlines()}
    for path, root in roots.items():
        if path.startswith("/sys/fs/cgroup"):
            assert root == "/" and "ro" in options[path], path
    # The root of a bind mount is shown below its own file system's mount point.
    within = lab.vmm.root.relative_to(_mount_point(lab.vmm.root))
    shown = {path for path, root in roots.items() if str(within) in root}
    assert shown == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
    assert str(lab.vmm.root) not in "".join(line.split(" - ")[1] for line in mounts.splitlines())


def test_an_exec_is_in_the_workloads_groups_and_limits(lab: Lab) -> None:
    lab.start("limited", "sleep 100", "--ulimit", "nofile=100:200", "--pids-limit", "5")
    namespaces = "for n in pid mnt uts ipc net cgroup user; do readlink /proc/$0/ns/$n; done"
    first = lab.vmm.out("exec", "limited", "sh", "-c", namespaces, "1")
    assert lab.vmm.out("exec", "limited", "sh", "-c", namespaces, "self") == first
    script = """
    for f in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
        [ -e $f ] && { grep -qx $$ $f && echo in || echo out $f; }
    done
    ulimit -Sn; ulimit -Hn
    for i in 1 2 3 4 5 6 7; do sleep 3 & done; wait"""
    done = lab.vmm.run("exec", "limited", "sh", "-c", script, check=False)
    lines = done.stdout.split()
    assert set(lines[:-2]) == {"in"} and lines[-2:] == ["100", "200"]
    assert "can't fork" in done.stderr


def test_the_data_is_out_of_other_users_reach(lab: Lab) -> None:
    """CVE-2021-41091: a set-user-ID program of an image is not for the host's users to run."""
    lab.vmm.run("run", "--rm", *QUIET, "-v", "reach:/x", "busybox", "touch", "/x/file")
    for directory, below in ((lab.vmm.root, "volumes"), (lab.vmm.run_dir, "locks")):
        assert directory.stat().st_mode & 0o067 == 0
        script = (
            "import os, sys\n"
            "fd = int(sys.argv[1])\n"
            "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
            "try: os.stat(sys.argv[2], dir_fd=fd)\n"
            "except PermissionError: sys.exit(0)\n"
            "sys.exit('reached')\n"
        )
        fd = os.open(directory, os.O_PATH)
        try:
            command = [sys.executable, "-c", script, str(fd), below]
            subprocess.run(command, pass_fds=[fd], check=True)
        finally:
            os.close(fd)
    lab.vmm.run("volume", "rm", "reach")


def _stored(vmm: Instance, workload: str) -> Path:
    return vmm.root / "workloads" / workload / "state.json"


def test_a_reused_pid_is_never_signalled(lab: Lab) -> None:
    """The shim dies behind our back, and its pid and the workload's now belong to a stranger."""
    workload = lab.start("reused", "sleep 100")
    path = _stored(lab.vmm, workload)
    record = json.loads(path.read_text())
    subprocess.run(["kill", "-9", str(record["shim_pid"])], check=True)
    until(lambda: not Path(f"/proc/{record['pid']}").exists())
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        path.write_text(json.dumps({**record, "pid": stranger.pid, "shim_pid": stranger.pid}))
        assert lab.vmm.inspect("reused")["State"]["Status"] == "exited"
        for command in (["kill", "reused"], ["exec", "reused", "true"]):
            assert lab.vmm.run(*command, check=False).returncode == 1
        lab.vmm.run("stop", "-t", "0", "reused")
        lab.vmm.run("rm", "-f", "reused")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_strangers_pid_in_the_record_of_a_living_workload(lab: Lab) -> None:
    workload = lab.start("alive", "sleep 100")
    path = _stored(lab.vmm, workload)
    record = json.loads(path.read_text())
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        path.write_text(json.dumps({**record, "pid": stranger.pid}))
        assert lab.vmm.run("exec", "alive", "cat", "/etc/hostname").stdout == f"{workload[:12]}\n"
        lab.vmm.run("stop", "-t", "0", "alive")
        assert stranger.poll() is None
        until(lambda: not Path(f"/proc/{record['pid']}").exists())
    finally:
        stranger.kill()
        stranger.wait()
