"""Seeds for the fuzzer: real plans (``P…``) and real conversations (``S…``), into a directory."""

from __future__ import annotations

import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))

from tests.unit.native.launching import Case, allow  # noqa: E402
from tests.unit.shim.shimlab import Lab, command  # noqa: E402
from vmm.control import frames as f  # noqa: E402
from vmm.model.launch import op  # noqa: E402


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
    ]
    return [hello + b"".join(requests), *(hello + request for request in requests)]


def main(target: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    work = target.parent / "seed-work"
    shutil.rmtree(work, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        seeds = [b"P" + plan for plan in plans(work)] + [b"S" + talk for talk in conversations()]
        for number, seed in enumerate(seeds):
            (target / f"seed-{number:02}").write_bytes(seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main(Path(sys.argv[1]))
