"""What a launched process is: seen from inside it."""

from __future__ import annotations

import os
import struct
import subprocess

import pytest

from tests.unit.native.launching import CAPS, Case, caps, deny
from vmm.model.launch import Op, op


def status(text: str) -> dict[str, str]:
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def test_is_first_process_and_alone(case: Case) -> None:
    result = case.sh("echo $$; ls -d /proc/[0-9]* | wc -l")
    assert result.out.split()[0] == "1"
    assert int(result.out.split()[1]) <= 3, "only the shell and its children"


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$; exit 3", 3)]
)
def test_exit_code(case: Case, script: str, code: int) -> None:
    assert case.sh(script).code == code


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (("/nope",), 127, 'exec "/nope": No such file or directory'),
        (("nope",), 127, 'exec "nope": executable file not found in $PATH'),
        (("",), 127, 'exec ""'),
        (("/etc/hosts",), 126, 'exec "/etc/hosts": Permission denied'),
        (("/etc",), 126, 'exec "/etc": Permission denied'),
        (("/etc/hosts/x",), 127, "Not a directory"),
        (("/proc/self/exe",), 126, 'exec "/proc/self/exe": Permission denied'),
        (("/proc/1/exe",), 126, 'exec "/proc/1/exe": Permission denied'),
        (("/bin/leak",), 126, 'exec "/bin/leak": Permission denied'),
        (("/bin/script",), 126, 'exec "/bin/script": Permission denied'),
        (("/bin/empty",), 126, 'exec "/bin/empty": Exec format error'),
    ],
)
def test_what_cannot_be_executed(case: Case, argv: tuple[str, ...], code: int, said: str) -> None:
    (case.layer / "bin/leak").symlink_to("/proc/self/exe")
    for name, text in (("script", "#!/proc/self/exe\n"), ("empty", "")):
        (case.layer / "bin" / name).write_text(text)
        (case.layer / "bin" / name).chmod(0o755)
    result = case.run(*argv)
    assert result.code == code
    assert said in result.err
    assert result.out == ""


def test_script_and_relative_name(case: Case) -> None:
    (case.layer / "hello").write_text("#!/bin/sh\necho hello $1\n")
    (case.layer / "hello").chmod(0o755)
    assert case.run("./hello", "you").out == "hello you\n"


def test_path_comes_from_the_environment(case: Case) -> None:
    (case.layer / "my").mkdir()
    (case.layer / "my/tool").symlink_to("/bin/busybox")
    case.env = ["PATH=/nowhere:/my", "A=1 2", "B="]
    assert "applet not found" in case.run("tool").err, "busybox itself says so"
    assert case.run("/bin/env").out == "PATH=/nowhere:/my\nA=1 2\nB=\n", "nothing of the host's"


def test_only_three_descriptors(case: Case) -> None:
    numbers = case.run("ls", "/proc/self/fd").out.split()
    assert numbers == ["0", "1", "2", "3"], "3 is ls's own directory"
    assert (
        case.sh("for f in 3 4 5 6 7 8 9 10 11; do test -e /proc/$$/fd/$f && echo $f; done").out
        == ""
    )


def test_capabilities_of_root(case: Case) -> None:
    seen = status(case.run("cat", "/proc/self/status").out)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(seen[name], 16) == CAPS
    assert int(seen["CapInh"], 16) == int(seen["CapAmb"], 16) == 0


def test_user_has_no_capability(case: Case) -> None:
    case.process = [
        op("groups", 7, 8),
        op("user", 1000, 1001),
        op("caps", f"{CAPS:x}", "0", "0", "0", "0"),
    ]
    seen = status(case.run("cat", "/proc/self/status").out)
    assert seen["Uid"].split() == ["1000"] * 4
    assert seen["Gid"].split() == ["1001"] * 4
    assert seen["Groups"].split() == ["7", "8"]
    assert {int(seen[c], 16) for c in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert int(seen["CapBnd"], 16) == CAPS


def test_ambient_capability_of_a_user(case: Case) -> None:
    bind = 1 << 10
    case.process = [
        op("user", 1000, 1000),
        op("caps", f"{CAPS:x}", f"{bind:x}", f"{bind:x}", f"{bind:x}", f"{bind:x}"),
    ]
    seen = status(case.run("cat", "/proc/self/status").out)
    assert int(seen["CapEff"], 16) == int(seen["CapAmb"], 16) == bind


def test_supplementary_groups_are_cleared(case: Case) -> None:
    assert case.run("id", "-G").out == "0\n"


@pytest.mark.parametrize("privileges", [[], [op("no-new-privs")]])
@pytest.mark.parametrize("user", [0, 1000])
def test_seccomp(case: Case, privileges: list[Op], user: int) -> None:
    mask = CAPS if user == 0 else 0
    case.process = [
        op("user", user, user),
        op("caps", f"{CAPS:x}", f"{mask:x}", f"{mask:x}", "0", "0"),
        deny(83, 258),
        *privileges,
    ]
    result = case.sh("mkdir /tmp; cat /proc/self/status")
    seen = status(result.out)
    assert seen["Seccomp"] == "2"
    assert seen["NoNewPrivs"] == str(len(privileges))
    assert int(seen["CapEff"], 16) == mask
    assert "Operation not permitted" in result.err
    assert not (case.base / "upper/tmp").exists()


def test_limits_and_umask(case: Case) -> None:
    case.process += [
        op("rlimit", "nofile", 100, 200),
        op("rlimit", "core", 0, 0),
        op("umask", "077"),
    ]
    result = case.sh("ulimit -n; ulimit -Hn; ulimit -c; umask")
    assert result.out.split() == ["100", "200", "0", "0077"]
    assert case.sh("cat /proc/self/oom_score_adj").out.strip() == "0"


def test_limit_above_the_hosts_is_an_error(case: Case) -> None:
    case.process.append(op("rlimit", "nofile", 20001, 1 << 30))
    result = case.run("true")
    assert result.code == 125
    assert "rlimit nofile 20001: cannot set the limit nofile" in result.err


def test_working_directory(case: Case) -> None:
    case.process.append(op("cwd", "/a/b", "create"))
    assert case.run("pwd").out == "/a/b\n"
    case.process[-1] = op("cwd", "/c", "must")
    assert case.run("pwd").code == 126


@pytest.mark.parametrize("path", ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/1/cwd", "/leak"])
def test_working_directory_stays_inside(case: Case, path: str) -> None:
    (case.layer / "leak").symlink_to("/proc/self/fd/5")
    case.process.append(op("cwd", path, "must"))
    result = case.run("pwd")
    assert (result.code, result.out) == (126, "")
    assert "working directory" in result.err


def test_init_reaps_forwards_and_reports(case: Case) -> None:
    init = op("init", str(case.libexec / "vmm-init"))
    case.process.append(init)
    result = case.sh("cat /proc/1/comm; (sleep 0.05 & ) ; sleep 0.2; ps | grep -c 'Z'; exit 9")
    assert result.out.split() == ["vmm-init", "0"] or result.out.split()[0] == "vmm-init"
    assert result.code == 9
    assert case.run("nope").code == 127
    (case.layer / "bin/empty").write_text("")
    (case.layer / "bin/empty").chmod(0o755)
    failed = case.run("/bin/empty")
    assert (failed.code, failed.out) == (126, "")
    assert 'exec "/bin/empty": Exec format error' in failed.err
    assert case.sh("trap 'exit 5' TERM; kill -TERM 1; while :; do sleep 0.05; done").code == 5
    assert case.sh("kill -KILL $$").code == 137


def test_init_program_cannot_be_written(case: Case) -> None:
    case.process.append(op("init", str(case.libexec / "vmm-init")))
    result = case.sh("echo x >>/proc/1/exe; ls /proc/$$/fd; true")
    assert "Text file busy" in result.err or "Read-only file system" in result.err
    assert result.out.split() == ["0", "1", "2"]


def test_terminal(case: Case) -> None:
    case.before_pivot.append(op("dev.node", "/dev/tty", "c", 5, 0, "666", 0, 0))
    result = case.sh(
        "tty; tty </dev/console; ls /proc/$$/fd | wc -l; stty size 2>/dev/null; ls /dev/pts",
        options=("-t",),
    )
    out = result.out.split("\r\n")
    assert out[0] == "/dev/pts/0"
    assert out[1] == "/dev/console"
    assert "0" in " ".join(out[-3:])
    assert case.sh("echo x >/dev/tty; test -t 0 && test -t 2", options=("-t",)).out == "x\r\n"


def test_null_input_is_the_workloads_own(case: Case) -> None:
    path = case.base / "plan"
    path.write_bytes(case.plan("sh", "-c", "stat -L -c %d /proc/self/fd/0 /dev").encode())
    out = subprocess.run(
        [str(case.libexec / "vmm-launch"), str(path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=20,
    ).stdout.split()
    assert out[0] == out[1]


def test_exec_joins_everything(case: Case) -> None:
    case.before_pivot.append(op("hostname", "inside"))
    result = case.exec(
        op("env", case.env[0], "X=1"),
        op("cwd", "/etc", "must"),
        caps(),
        deny(83),
        op(
            "exec",
            "sh",
            "-c",
            "hostname; pwd; echo $X; cat /proc/1/cmdline; ls /proc/self/fd; "
            "for n in pid mnt uts ipc net cgroup; do "
            "test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) || echo $n; done; "
            "grep -E 'CapEff|CapInh|^Seccomp:' /proc/self/status; exit 4",
        ),
    )
    assert result.code == 4, result.err
    lines = result.out.replace("\0", " ").split("\n")
    assert lines[0:3] == ["inside", "/etc", "1"]
    assert lines[3].startswith("sleep 60")
    assert f"CapEff:\t{CAPS:016x}" in lines
    assert "CapInh:\t0000000000000000" in lines
    assert "Seccomp:\t2" in lines


@pytest.mark.parametrize(("argv", "code"), [(["nope"], 127), (["/etc"], 126)])
def test_exec_errors(case: Case, argv: list[str], code: int) -> None:
    result = case.exec(op("env", *case.env), op("exec", *argv))
    assert result.code == code
    assert f'exec "{argv[0]}"' in result.err


def test_exec_with_terminal(case: Case) -> None:
    result = case.exec(op("env", *case.env), op("exec", "tty"), options=("-t",))
    assert result.out == "/dev/pts/0\r\n"


def test_unknown_operation_is_named(case: Case) -> None:
    case.process.append(op("mount.magic", "x"))
    result = case.run("true")
    assert (result.code, result.err) == (125, 'mount.magic x: unknown operation "mount.magic"\n')
    case.process[-1] = op("user", 1)
    assert 'operation "user" does not take 1 arguments' in case.run("true").err


def test_launcher_is_never_visible_or_writable(case: Case) -> None:
    """One inside watches every new process while execs arrive (CVE-2019-5736)."""
    binary = case.libexec / "vmm-launch"
    before = binary.read_bytes()
    watch = (
        "while :; do for p in /proc/[0-9]*; do stat -L -c %s $p/exe >>/seen 2>/dev/null;"
        " (echo x >>$p/exe) 2>/dev/null; done; done"
    )
    case.exec(
        op("env", *case.env), caps(), op("exec", "sleep", "0.02"),
        running=("sh", "-c", watch), options=("-n", "15"),
    )  # fmt: skip
    seen = set((case.base / "upper/seen").read_text().split())
    assert seen == {str((case.layer / "bin/busybox").stat().st_size)}
    assert binary.read_bytes() == before


def test_death_before_execution_is_a_launch_failure(case: Case) -> None:
    """Not a run that ended with 159: the filter kills the process at execve(2)."""
    execve = 59 if os.uname().machine == "x86_64" else 221
    code = struct.pack("<HBBI", 0x20, 0, 0, 0) + struct.pack("<HBBI", 0x15, 0, 1, execve)
    code += struct.pack("<HBBI", 0x06, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS
    code += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    case.process.append(op("seccomp", code))
    result = case.run("true")
    assert result.code == 125
    assert "killed by signal 31 before it could execute its program" in result.err


def test_the_launchers_program_cannot_be_written(case: Case) -> None:
    """Were it executed inside, by a race, its file is on a mount that stays read-only."""
    plan = case.base / "plan"
    plan.write_bytes(case.plan("sh", "-c", "echo up; sleep 60").encode())
    before = (case.libexec / "vmm-launch").read_bytes()
    with subprocess.Popen(
        [str(case.libexec / "vmm-launch"), str(plan)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        held = os.open(f"/proc/{process.pid}/exe", os.O_PATH)
        try:
            with pytest.raises(OSError, match=r"Read-only|Text file busy"):
                os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
            process.kill()  # from now on no ETXTBSY protects it
            process.wait()
            with pytest.raises(OSError, match="Read-only"):
                os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
            with pytest.raises(OSError, match="Read-only"):
                os.chmod(f"/proc/self/fd/{held}", 0o777)
        finally:
            os.close(held)
    assert (case.libexec / "vmm-launch").read_bytes() == before
