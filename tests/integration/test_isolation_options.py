"""Options that widen or narrow what a workload may do, each seen from inside."""

from __future__ import annotations

import json
from pathlib import Path

from tests.instance import Instance
from tests.integration.isolation_lab import QUIET, Lab, results

MIB = 1 << 20


def _limit(v1: str, v2: str) -> str:
    """Shell that shows a limit on either version of control groups."""
    base = "/sys/fs/cgroup"
    return f"cat {base}/{v1} 2>/dev/null || cat {base}/{v2}"


def test_capabilities_added_and_dropped(lab: Lab) -> None:
    show = "grep -E '^Cap(Eff|Inh|Amb)' /proc/self/status | cut -f 2"

    def held(*options: str) -> int:
        effective, *others = sorted(int(n, 16) for n in lab.sh(show, *options).split())[::-1]
        assert others == [0, 0]
        return effective

    usual = held()
    assert held("--cap-add", "SYS_TIME") == usual | 1 << 25
    assert held("--cap-drop", "CHOWN", "--cap-drop", "cap_net_raw") == usual & ~(1 | 1 << 13)
    assert held("--cap-drop", "ALL", "--cap-add", "KILL") == 1 << 5
    assert held("--cap-drop", "ALL") == 0
    assert held("--cap-add", "ALL") & usual == usual
    done = lab.vmm.run("run", "--rm", "--cap-add", "NONSENSE", "busybox", "true", check=False)
    assert done.returncode == 125 and "NONSENSE" in done.stderr


def test_an_added_capability_opens_its_system_calls_alone(lab: Lab) -> None:
    inside = results(lab.sh("mkdir -p /mnt; /probe kernel", "--cap-add", "SYS_ADMIN"))
    assert inside["mount"] == inside["unshare_mount"] == inside["sethostname"] == "ok"
    for name in ("keyctl", "userfaultfd", "io_uring_setup", "open_by_handle_at", "delete_module"):
        assert inside[name] == "EPERM", name


def test_privileged_and_a_privileged_exec(lab: Lab) -> None:
    show = "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs x /media && echo mounted"
    script = f"mkdir -p /media; {show}; ls /dev/mem /dev/kmsg >/dev/null 2>&1; ls /dev | grep -c ."
    lines = lab.sh(script, "--privileged").split()
    bounding = Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0]
    assert (lines[1], lines[3], lines[4]) == (bounding, "0", "mounted")
    assert int(lines[5]) > int(lab.sh("ls /dev | grep -c ."))
    lab.start("plain", "sleep 100")
    argv = ("sh", "-c", f"mkdir -p /media; {show}; true")
    raised = lab.vmm.out("exec", "--privileged", "plain", *argv).split()
    assert raised[1] == bounding and raised[3] == "2"  # as in Docker, the filter stays
    usual = lab.vmm.out("exec", "plain", *argv).split()
    assert int(usual[1], 16) < int(bounding, 16) and usual[3] == "2"
    assert "mounted" not in raised + usual


def test_security_options(lab: Lab, tmp_path: Path) -> None:
    show = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f 2"
    assert lab.sh(show, "--security-opt", "no-new-privileges").split() == ["1", "2"]
    assert lab.sh(show, "--security-opt", "seccomp=unconfined").split() == ["0", "0"]
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    option = ("--security-opt", f"seccomp={profile}")
    assert "not supported" in lab.sh("mkdir /x 2>&1; true", *option)
    lab.start("profiled", "sleep 100", *option)
    done = lab.vmm.run("exec", "profiled", "mkdir", "/x", check=False)
    assert "not supported" in done.stderr
    script = "(: > /proc/sys/net/ipv4/ip_forward) && echo writable"
    assert lab.sh(script, "--security-opt", "systempaths=unconfined") == "writable\n"


def test_read_only_root_and_temporary_file_systems(lab: Lab) -> None:
    script = """
    for p in /x /etc/x /etc/hosts /tmp/x /run/x /dev/shm/x /data/x; do
        (echo > $p) 2>/dev/null && echo $p
    done; grep ' /run ' /proc/mounts"""
    options = ("--read-only", "--tmpfs", "/tmp", "--tmpfs", "/run:size=4m,mode=700,noexec")
    lines = lab.sh(script, *options, "-v", "scratch:/data").splitlines()
    assert lines[:-1] == ["/tmp/x", "/run/x", "/dev/shm/x", "/data/x"]
    assert "size=4096k" in lines[-1] and "mode=700" in lines[-1] and "nosuid" in lines[-1]
    lab.vmm.run("volume", "rm", "scratch")


def test_a_device_passed_in(lab: Lab) -> None:
    script = "ls -l /dev/mine; (: < /dev/mine) && echo read; (: > /dev/mine) && echo written"
    refused = lab.sh("mknod /tmp/f c 10 229; (: < /tmp/f) && echo opened; true")
    assert refused == ""
    out = lab.sh(script, "--device", "/dev/fuse:/dev/mine")
    assert "10, 229" in out and out.endswith("read\nwritten\n")
    out = lab.sh(f"{script}; true", "--device", "/dev/fuse:/dev/mine:r")
    assert out.endswith("read\n")


def test_limits_of_processes_and_kernel_settings(lab: Lab) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/sys/net/core/somaxconn"
    script += " /proc/sys/kernel/shm_rmid_forced"
    options = ["--ulimit", "nofile=64:128", "--ulimit", "core=0"]
    options += ["--sysctl", "net.core.somaxconn=77", "--sysctl", "kernel.shm_rmid_forced=1"]
    assert lab.sh(script, *options).split() == ["64", "128", "0", "77", "1"]
    argv = ("run", "--rm", *QUIET, "--sysctl", "kernel.core_pattern=x", "busybox", "true")
    done = lab.vmm.run(*argv, check=False)
    assert done.returncode == 125 and "core_pattern" in done.stderr


def test_control_groups_seen_from_inside(lab: Lab) -> None:
    shown = [
        _limit("memory/memory.limit_in_bytes", "memory.max"),
        _limit("pids/pids.max", "pids.max"),
        _limit("cpu/cpu.cfs_quota_us", "cpu.max"),
        _limit("cpuset/cpuset.cpus", "cpuset.cpus"),
        "grep Cpus_allowed_list /proc/self/status | cut -f 2",
        "df -k /dev/shm | tail -1 | awk '{print $2}'",
    ]
    options = ["--memory", "32m", "--pids-limit", "20", "--cpus", "0.5", "--cpuset-cpus", "0"]
    lines = lab.sh("; ".join(shown), *options, "--shm-size", "3m").splitlines()
    assert [line.split()[0] for line in lines] == [str(32 * MIB), "20", "50000", "0", "0", "3072"]


def test_more_processes_than_allowed(lab: Lab) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done"
    argv = ["run", "--rm", *QUIET, "--pids-limit", "4", "busybox", "sh", "-c", script]
    done = lab.vmm.run(*argv, check=False)
    assert done.returncode != 0 and "can't fork" in done.stderr


def test_more_memory_than_allowed(lab: Lab) -> None:
    argv = ["--name", "hungry", *QUIET, "--memory", "24m", "--memory-swap", "24m"]
    hog = ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]
    done = lab.vmm.run("run", *argv, "busybox", *hog, check=False)
    assert done.returncode == 137
    state = lab.vmm.inspect("hungry")["State"]
    assert (state["ExitCode"], state["OOMKilled"], state["Status"]) == (137, True, "exited")


def test_a_share_of_a_cpu_is_no_more(lab: Lab) -> None:
    script = "timeout -s KILL 1 sh -c 'while :; do :; done'; cat /proc/self/stat >/dev/null; times"
    out = lab.sh(f"{script}; true", "--cpus", "0.2")
    minutes, seconds = out.splitlines()[1].split()[0].rstrip("s").split("m")
    assert 60 * int(minutes) + float(seconds) < 0.7


def test_an_init_reaps_and_forwards(lab: Lab) -> None:
    script = (
        "(sleep 0.1 &) ; (true &) ; sleep 0.4; ls -d /proc/[0-9]* | grep -c .; grep -h '^State' "
    )
    script += (
        "/proc/[0-9]*/status | grep -c zombie; cat /proc/1/comm; cat /proc/1/cmdline | head -c 8"
    )
    lines = lab.sh(script, "--init").split()
    assert lines[1] == "0" and "vmm-init" in lines[2] + lines[3]
    write = "(: > /proc/1/exe) 2>/dev/null && echo written; true"
    assert lab.sh(write, "--init") == ""


def test_users(lab: Lab) -> None:
    image = lab.make("named", {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n",
        "etc/group": "root:x:0:\ndaemon:x:1:\n",
    })  # fmt: skip
    cases = {"1234": "1234 0", "1234:55": "1234 55", "daemon": "1 1", "root:daemon": "0 1"}
    for user, shown in cases.items():
        assert lab.sh("echo $(id -u) $(id -g)", "-u", user, image=image) == f"{shown}\n"
    assert lab.sh("touch /x 2>/dev/null && echo made; true", "-u", "77", image=image) == ""


def test_an_image_of_127_layers(lab: Lab, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "f").write_text("x")
    steps = [f"COPY f /layers/{number}" for number in range(126)]
    (context / "Dockerfile").write_text("\n".join(["FROM busybox", *steps]) + "\n")
    lab.vmm.run("build", "-t", "deep", str(context))
    lab.images.append("deep")
    assert len(lab.vmm.inspect("deep")["RootFS"]["Layers"]) == 127
    assert lab.sh("ls /layers | grep -c .; cat /layers/0 /layers/125", image="deep") == "126\nxx"


def test_the_settings_seccomp_profile_holds_everywhere(vmm: Instance, tmp_path: Path) -> None:
    """run, exec and RUN use it in place of the shipped one; a missing file is named."""
    denied = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN mkdir /made\n")
    env = {"VMM_SECCOMP_PROFILE": str(profile)}
    vmm.run("run", "-d", "--name", "held", "--network=none", "busybox", "sleep", "100", env=env)
    for argv in (
        ["run", "--rm", "--network=none", "busybox", "mkdir", "/made"],
        ["exec", "held", "mkdir", "/made"],
        ["build", "--no-cache", "--network=none", str(tmp_path)],
    ):
        done = vmm.run(*argv, check=False, env=env)
        assert done.returncode == 1, done
        assert "Operation not permitted" in done.stdout + done.stderr
    vmm.run("run", "--rm", "--network=none", "busybox", "mkdir", "/made")
    gone = vmm.run("create", "busybox", "true", check=False, env=env)
    assert gone.returncode == 0
    profile.unlink()
    done = vmm.run("start", gone.stdout.strip(), check=False, env=env)
    assert done.returncode == 1 and f"{profile}: No such file" in done.stderr
    assert "VMM_SECCOMP_PROFILE" in done.stderr
