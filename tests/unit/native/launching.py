"""Plans for vmm-launch: a busybox root, the usual operations, and what came of running them."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

from vmm.model.launch import LaunchPlan, Op, encode_ops, op

#: Docker's default capabilities (capabilities(7) numbers).
CAPS = sum(1 << n for n in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
COMMANDS = (
    *("sh", "cat", "ls", "id", "stat", "mount", "hostname", "true", "false", "sleep", "echo"),
    *("env", "pwd", "readlink", "tty", "kill", "head", "ip", "od", "grep", "wc", "mkdir"),
    *("mknod", "chmod", "touch", "ps"),
)
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9))


class Result(NamedTuple):
    code: int
    out: str
    err: str


def make_layer(path: Path) -> Path:
    """A directory with busybox and links to its commands."""
    (path / "bin").mkdir(parents=True)
    (path / "etc").mkdir()
    (path / "etc/hosts").write_text("from the image\n")
    target = path / "bin/busybox"
    target.write_bytes(Path("/bin/busybox").read_bytes())
    target.chmod(0o755)
    for name in COMMANDS:
        (path / "bin" / name).symlink_to("busybox")
    return path


class Case:
    """One workload below ``base``: layers, root, and the plan's parts, open to change by a test."""

    def __init__(self, base: Path, libexec: Path) -> None:
        self.base, self.libexec = base, libexec
        self.layers: list[str] = ["base"]
        (base / "layers").mkdir()
        self.layer = make_layer(base / "layers/base")
        for name in ("upper", "work"):
            (base / name).mkdir()
        self.namespaces = ["pid", "mount", "uts", "ipc", "net", "cgroup"]
        self.host: list[Op] = []
        self.before_pivot: list[Op] = []
        self.after_pivot: list[Op] = []
        self.process: list[Op] = [caps()]
        self.env = [PATH]
        self.volatile = 0

    def root(self) -> list[Op]:
        return [
            op(
                "root.overlay",
                str(self.base / "layers"),
                str(self.base / "upper"),
                str(self.base / "work"),
                self.volatile,
                *self.layers,
            ),
        ]

    def mounts(self) -> list[Op]:
        dev = (
            op("dev.node", f"/dev/{n}", "c", major, minor, "666", 0, 0)
            for n, major, minor in DEVICES
        )
        return [
            op("mount.fs", "proc", "proc", "/proc", "nosuid,nodev,noexec", ""),
            op("mount.fs", "tmpfs", "tmpfs", "/dev", "nosuid,strictatime", "mode=755,size=65536k"),
            *dev,
            op(
                "mount.fs",
                "devpts",
                "devpts",
                "/dev/pts",
                "nosuid,noexec",
                "newinstance,ptmxmode=0666,mode=0620,gid=5",
            ),
            op("symlink", "pts/ptmx", "/dev/ptmx"),
            op("mount.fs", "mqueue", "mqueue", "/dev/mqueue", "nosuid,nodev,noexec", ""),
            op("mount.fs", "sysfs", "sysfs", "/sys", "ro,nosuid,nodev,noexec", ""),
            op("dev.console"),
        ]

    def plan(self, *argv: str) -> LaunchPlan:
        child = [
            *self.root(),
            *self.mounts(),
            *self.before_pivot,
            op("root.pivot"),
            *self.after_pivot,
            op("cwd", "/", "must"),
            *self.process,
            op("env", *self.env),
            op("exec", *argv),
        ]
        return LaunchPlan((), (op("ns.new", *self.namespaces), *self.host), tuple(child))

    def run(
        self,
        *argv: str,
        options: tuple[str, ...] = (),
        stdin: bytes = b"",
        timeout: float = 20,
        prefix: tuple[str, ...] = (),
    ) -> Result:
        path = self.base / "plan"
        path.write_bytes(self.plan(*argv).encode())
        return launch(
            self.libexec, str(path), options=options, stdin=stdin, timeout=timeout, prefix=prefix
        )

    def sh(self, script: str, **how: object) -> Result:
        return self.run("sh", "-c", script, **how)  # type: ignore[arg-type]

    def exec(
        self, *ops: Op, running: tuple[str, ...] = ("sleep", "60"), options: tuple[str, ...] = ()
    ) -> Result:
        """Run child operations in the workload, whose first process is ``running``."""
        path = self.base / "operations"
        path.write_bytes(encode_ops(ops))
        return self.run(*running, options=("-e", str(path), *options))


def caps(mask: int = CAPS, effective: int | None = None, ambient: int = 0) -> Op:
    shown = mask if effective is None else effective
    return op("caps", f"{mask:x}", f"{shown:x}", f"{shown:x}", "0", f"{ambient:x}")


def deny(*syscalls: int) -> Op:
    """A seccomp filter that answers EPERM to these system call numbers."""
    code = [struct.pack("<HBBI", 0x20, 0, 0, 0)]  # load seccomp_data.nr
    for i, number in enumerate(syscalls):
        code.append(struct.pack("<HBBI", 0x15, len(syscalls) - i, 0, number))
    code.append(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))  # SECCOMP_RET_ALLOW
    code.append(struct.pack("<HBBI", 0x06, 0, 0, 0x00050000 | 1))  # SECCOMP_RET_ERRNO, EPERM
    return op("seccomp", b"".join(code))


def allow() -> Op:
    return deny(0xFFFFFFFF)


def launch(
    libexec: Path,
    plan: str,
    options: tuple[str, ...] = (),
    stdin: bytes = b"",
    timeout: float = 20,
    prefix: tuple[str, ...] = (),
) -> Result:
    done = subprocess.run(
        [*prefix, str(libexec / "vmm-launch"), *options, plan],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
        close_fds=True,
        env={"SECRET_OF_THE_HOST": "1"},
        cwd="/",
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def cgroup_of(controller: str) -> Path:
    """The directory of this process's own cgroup in a v1 hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path("/sys/fs/cgroup") / controller.removeprefix("name=") / path.lstrip("/")
    raise LookupError(controller)


def own_name(kind: str) -> str:
    return f"vmmt{kind}{os.getpid() % 100000}"
