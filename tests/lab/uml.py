"""A machine with another kernel than the host's: User-mode Linux, which is an ordinary process.

Its root is the host's, read-only (hostfs); one directory is shared for writing.  The guest has
cgroup2 alone, with the controllers cpu, io, memory and pids, and one CPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab import boots
from tests.lab.boots import Boot

#: Debian's package user-mode-linux has both.
KERNEL = Path("/usr/bin/linux.uml")
MODULES = Path("/usr/lib/uml/modules")
LAB = Path(__file__).parent


def run(scripts: dict[str, str], directory: Path, *, memory: int = 512, timeout: float) -> Boot:
    """Boot once, run the shell scripts in order, power off; AssertionError past ``timeout``.

    In the guest ``$SHARED`` is a directory below it, ``$SCRATCH`` a tmpfs, ``$PYTHON`` our own.
    ``memory`` is in MiB, ``timeout`` in seconds and includes booting.
    """
    assert KERNEL.exists() and MODULES.is_dir(), "install the package user-mode-linux"
    shared = boots.shared(directory, scripts)
    shutil.copy(LAB / "uml-init.sh", shared / "init")
    (shared / "environment").write_text(
        f"export SHARED='{shared}' LAB='{LAB}' PYTHON='{sys.executable}' MODULES='{MODULES}'\n"
    )
    console = _boot(shared, memory, timeout)
    return boots.collect(shared, console)


def _boot(shared: Path, memory: int, timeout: float) -> str:
    """The console of a guest that powered off by itself."""
    argv = [
        str(KERNEL), f"mem={memory}M", f"uml_dir={shared.parent}/", "umid=guest",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet",
        f"init={shared}/init", "con=null", "con0=fd:0,fd:1",
    ]  # fmt: skip
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "TMPDIR": _memory_directory(shared, memory)},
    )
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        raise AssertionError(f"the guest did not end:\n{boots.text(out)}") from None
    return boots.text(out)


def _memory_directory(shared: Path, memory: int) -> str:
    """Where the guest's memory is a file: a tmpfs that holds it, else the disk."""
    quick = Path("/dev/shm")
    if quick.is_dir():
        info = os.statvfs(quick)
        if info.f_bavail * info.f_frsize > memory << 20:
            return str(quick)
    return str(shared.parent)
