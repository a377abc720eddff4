"""Seeds for the fuzzer: real plans (``P…``) and real conversations of clients (``S…``)
and guests (``G…``), into a directory."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))

from tests.unit.native.launching import Case, allow  # noqa: E402
from tests.unit.shim.shimlab import Lab, command  # noqa: E402
from vmm.control import frames as f  # noqa: E402
from vmm.model.launch import encode_ops, op  # noqa: E402


def plans(work: Path) -> list[bytes]:
    (work / "lab").mkdir(parents=True)
    (work / "case").mkdir()
    helper = (
        op("helper", "/bin/relay", "5,tcp,10.0.0.2,80,serve"),
        op("helper-fds", 5, 6),
        op("restart", "on-failure", 3),
        op("stop", 15, 10000),
        op("reaper", "/bin/vmm", "system", "reap", "c0ffee"),
    )
    lab = Lab(work / "lab", Path("/"), Path("/")).plan("sleep", "60", shim=helper)
    case = Case(work / "case", Path("/"))
    case.host = [
        op("cgroup.make", "/sys/fs/cgroup/memory/vmm/a"),
        op("cgroup.write", "/sys/fs/cgroup/memory/vmm/a/memory.limit_in_bytes", 1 << 20),
        op("oom-score", 100),
        op("net.veth", "v0", "vmm0", "eth0", "02:00:00:00:00:01", 1500),
        op("net.address", "eth0", "10.0.0.2/24"),
        op("net.route", "10.0.0.1"),
        op("ns.path", "ipc", "/proc/1/ns/ipc"),
    ]
    case.process += [allow(), op("user", 1000, 1000), op("rlimit", "nofile", 1024, 4096)]
    return [lab.encode(), case.plan("sh", "-c", "echo up").encode()]


def conversations() -> list[bytes]:
    hello = f.encode(f.HELLO, f.encode_args("1.0"))
    requests = [
        f.encode(f.STATUS),
        f.encode(f.SIGNAL, f.encode_args(15, 1, 0)),
        f.encode(f.STOP, f.encode_args(15, -1)),
        f.encode(f.WAIT, f.encode_args(1)),
        f.encode(f.ATTACH, f.encode_args(1, 1, 1)),
        f.encode(f.STDIN, b"typed"),
        f.encode(f.RESIZE, f.encode_args(24, 80)),
        f.encode(f.RESIZE, f.encode_args(24, 80, "abc")),
        f.encode(f.EXEC, f.encode_args("e1", 0, 1, 0, command("true")), 1),
        f.encode(f.EXEC_ATTACH, f.encode_args("abc"), 2),
        f.encode(f.STDIN, b"", 2),
        f.encode(f.EXEC_SIGNAL, f.encode_args("abc", 9)),
        f.encode(f.DETACH, b"", 2),
        f.encode(f.START),
        f.encode(f.PAUSE),
        f.encode(f.STATS),
        f.encode(f.TOP),
        f.encode(
            f.UPDATE, f.encode_args("on-failure", 3, encode_ops((op("cgroup.try", "/x", "1"),)))
        ),
        f.encode(f.FILE, f.encode_args("/etc/hosts", "x")),
    ]
    return [hello + b"".join(requests), *(hello + request for request in requests)]


def guests() -> list[bytes]:
    """What a guest says that runs two execs and was asked STATS, TOP, SIGNAL and FILE."""
    answers = [
        f.encode(f.OK, f.encode_args("cpu_ns=5", "memory=7")),
        f.encode(f.LISTING, b"1\t0\t0\tS\n"),
        f.encode(f.OK),
        f.encode(f.OK),
        f.encode(f.ERROR, f.encode_args(1, "file", "no such file")),
    ]
    frames = [
        f.encode(f.STDOUT, b"out"),
        f.encode(f.STDERR, b"err"),
        f.encode(f.OK, f.encode_args(77), 2),
        f.encode(f.STDOUT, b"x" * 3000, 2),
        f.encode(f.OK, b"", 2),
        f.encode(f.STDOUT, b"", 1),
        f.encode(f.STDERR, b"", 1),
        f.encode(f.EXIT, f.encode_args(3, 0, 0), 1),
        f.encode(41, f.encode_args(5), 1),
        f.encode(f.EXIT, f.encode_args(137, 9, 1)),
    ]
    refusal = f.encode(f.ERROR, f.encode_args(127, "exec x", "x: not found"), 2)
    hello = f.encode(f.HELLO, f.encode_args("1.0", "guest", "state=running", "pid=4"))
    return [b"".join(answers + frames), b"".join(frames[:3]) + hello, refusal, *frames]


def main(target: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    work = target.parent / "seed-work"
    shutil.rmtree(work, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        seeds = [b"P" + plan for plan in plans(work)] + [b"S" + talk for talk in conversations()]
        seeds += [b"G" + talk for talk in guests()]
        for number, seed in enumerate(seeds):
            (target / f"seed-{number:02}").write_bytes(seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main(Path(sys.argv[1]))
