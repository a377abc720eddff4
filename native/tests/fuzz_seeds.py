"""Seeds for the fuzzers, into a directory: in ``seed-…`` real plans (``P…``) and real
conversations of clients (``S…``) and guests (``G…``), in ``init-…`` lives of a guest (``I…``,
for ``fuzz_init.c``)."""

from __future__ import annotations

import sys
from enum import IntEnum, auto
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))

from tests.unit.native.guestlab import CREDIT, LAUNCH, MARKER, SHUTDOWN, encode_plan  # noqa: E402
from tests.unit.native.launching import Case, allow  # noqa: E402
from tests.unit.shim.shimlab import Lab, command  # noqa: E402
from vmm.control import frames as f  # noqa: E402
from vmm.model.launch import encode_ops, op  # noqa: E402


def plans(work: Path) -> list[bytes]:
    (work / "lab").mkdir(parents=True)
    (work / "case").mkdir()
    shim = (
        op("helper", "/bin/relay", "5,tcp,10.0.0.2,80,serve"),
        op("helper-fds", 5, 6),
        op("restart", "on-failure", 3),
        op("stop", 15, 10000),
        op("health", "/l", 30000, 30000, 0, 5000, 3, "30s", command("true")),
        op("reaper", "/bin/vmm", "system", "reap", "c0ffee"),
    )
    lab = Lab(work / "lab", Path("/"), Path("/")).plan("sleep", "60", shim=shim)
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


class Act(IntEnum):
    """What happens around a guest (``enum kind`` of fuzz_init.c)."""

    SEND = 0
    REPEAT = auto()
    WRITE = auto()
    READ = auto()
    CLOSE = auto()
    END = auto()
    TIME = auto()
    DEAF = auto()
    HEAR = auto()
    HANG_UP = auto()
    CONNECT = auto()
    REFUSE = auto()


def act(kind: Act, *detail: int, hurry: bool = False) -> bytes:
    return bytes((kind | (hurry << 7), len(detail), 0, *detail))


def send(*frames: bytes) -> bytes:
    data = b"".join(frames)
    return bytes((Act.SEND,)) + len(data).to_bytes(2, "little") + data


def sync(number: int = 0) -> bytes:
    return send(MARKER + bytes([number] * 16) + f.encode(f.HELLO, f.encode_args(f.VERSION)))


def ask(type: int, *args: str | bytes | int, channel: int = 0) -> bytes:
    return f.encode(type, f.encode_args(*args), channel)


def run_exec(channel: int, tty: int = 0, stdin: int = 1, detach: int = 0) -> bytes:
    return send(ask(f.EXEC, f"e{channel}", tty, stdin, detach, command("true"), channel=channel))


def launch(tty: int = 0, stdin: int = 1) -> bytes:
    host = (
        op("guest.mount", "tag", "/run/share", "virtiofs", "ro,nosuid", ""),
        op("guest.mkdir", "/run/upper", "0755", 0, 0),
        op("guest.stdio", tty, stdin, 0),
        op("cgroup.make", "/sys/fs/cgroup/a"),
        op("net.address", "eth0", "10.0.0.2/24"),
    )
    plan = encode_plan(host, (op("env", "A=b"), op("exec", "sh")))
    parts = [f.encode(LAUNCH, plan[at : at + 100]) for at in range(0, len(plan), 100)]
    return send(*parts, f.encode(LAUNCH))


def lives() -> list[bytes]:
    """A guest's life in parts, and all in one."""
    up = sync() + launch()
    flood = act(Act.WRITE, 0, 252, 50)
    asked = (
        ask(f.STATS),
        ask(f.TOP),
        ask(f.FILE, "/etc/hosts", "x"),
        ask(f.SIGNAL, 10, 0),
        ask(f.RESIZE, 24, 80),
        ask(f.EXEC_SIGNAL, "e1", 9, 1),
    )
    typed = send(f.encode(f.STDIN, b"typed" * 2000))
    ends = act(Act.END, 0, 6)
    parts = [
        launch(tty=1) + act(Act.WRITE, 0, 0, 2) + typed + act(Act.READ, 0, 0, 200) + ends,
        launch() + typed + act(Act.REPEAT, 30) + act(Act.READ, 0, 0, 255) + sync(1) + typed,
        launch() + run_exec(1) + run_exec(2, tty=1) + run_exec(3, detach=1) + send(*asked),
        launch() + run_exec(1) + act(Act.WRITE, 1, 1, 9) + act(Act.END, 1, 0) + run_exec(1) + ends,
        launch() + act(Act.DEAF) + flood + flood + ends + sync(1) + act(Act.HEAR),
        launch()
        + act(Act.DEAF)
        + (flood + act(Act.WRITE, 0, 0, 1) + send(ask(CREDIT, 1 << 16))) * 8
        + sync(1),
        launch() + act(Act.DEAF) + flood + act(Act.HANG_UP) + ends + act(Act.CONNECT) + sync(1),
        launch() + act(Act.DEAF) + send(*asked) + act(Act.REPEAT, 200) + send(ask(f.TOP)) + sync(1),
        act(Act.REFUSE, 126) + launch() + launch() + run_exec(1) + act(Act.CLOSE, 0, 1) + ends,
        typed + launch(stdin=0) + send(f.encode(f.STDIN)) + act(Act.TIME, 200) + send(*asked),
        launch() + ends + act(Act.TIME, 130) + act(Act.TIME, 130, hurry=True) + send(*asked),
        launch() + send(f.encode(f.STDIN, b"x" * 4000)[:500]) + sync(1) + act(Act.TIME, 40),
        send(b"\xff" * 40) + launch() + sync(1) + launch() + send(f.encode(SHUTDOWN)),
        launch() + typed + act(Act.REPEAT, 80) + sync(1) + send(ask(CREDIT, "much")) + sync(2),
        launch() + act(Act.CLOSE, 0, 0) + typed + run_exec(7, detach=1) + act(Act.END, 1, 1, 200),
        launch() + act(Act.DEAF) + flood * 3 + ends + send(*asked) + act(Act.TIME, 200) + sync(3),
        launch() + act(Act.DEAF) + send(ask(f.TOP)) * 30 + ends + act(Act.TIME, 200) + sync(3),
        launch(tty=1) + send(ask(f.RESIZE, 1, 2), ask(f.SIGNAL, 15, 1), ask(f.RESIZE, 1, 2, "e")),
        b"".join(run_exec(number) for number in (0, 1)) + launch() + run_exec(1) + run_exec(1),
    ]
    return [sync() + part for part in parts] + [up + b"".join(parts)]


def write(target: Path, name: str, seeds: list[bytes]) -> None:
    for number, seed in enumerate(seeds):
        (target / f"{name}-{number:02}").write_bytes(seed)


def main(target: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    work = target.parent / "seed-work"
    shutil.rmtree(work, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        seeds = [b"P" + plan for plan in plans(work)] + [b"S" + talk for talk in conversations()]
        seeds += [b"G" + talk for talk in guests()]
        write(target, "seed", seeds)
        write(target, "init", [b"I" + life for life in lives()])
    finally:
        shutil.rmtree(work, ignore_errors=True)


main(Path(sys.argv[1]))
