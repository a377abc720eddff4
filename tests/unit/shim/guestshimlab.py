"""A shim that keeps a guest: guestpeer.py, started by guestcontrol.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.unit.shim.shimlab import Lab, eventually
from vmm.model.launch import LaunchPlan, op

HERE = Path(__file__).parent


class GuestLab(Lab):
    mode = "good"
    boot_ms, answer_ms, adopt = 10000, 3000, False
    #: Bytes in the plan, so that it takes several frames.
    padding = 200000

    def plan(self, *argv: str, **options: Any) -> LaunchPlan:
        tty, stdin = options.get("tty", False), options.get("stdin", False)
        channel = str(self.path / "channel")
        control = [sys.executable, "-I", "-S", str(HERE / "guestcontrol.py"), str(self.path)]
        shim = (
            op("guest", *control, channel, self.mode),
            op("channel", channel, 12345, os.getuid()),
            op("guest-timeout", self.boot_ms, self.answer_ms),
            op("adopt", int(self.adopt)),
            *options.pop("shim", ()),
        )
        plan = super().plan(*argv, shim=shim, **options)
        stdio = op("guest.stdio", int(tty), int(stdin), int(options.get("once", False)))
        padding = op("guest.mkdir", "x" * self.padding, "0755", 0, 0)
        real = op("ns.new", "pid", "mount", "uts", "ipc")
        return plan._replace(host=(stdio, real if self.mode.startswith("/") else padding))

    def calls(self) -> list[str]:
        path = self.path / "calls"
        return path.read_text().split() if path.exists() else []

    def machine(self) -> int:
        """The pid of what stands for QEMU."""
        return int((self.path / "pid").read_text())

    def close(self) -> None:
        super().close()
        with contextlib.suppress(OSError, ValueError):
            os.killpg(self.machine(), signal.SIGKILL)

    def ended(self) -> dict[str, Any]:
        """The state once it is exited."""
        eventually(lambda: self.state()["status"] == "exited", 20)
        return self.state()
