"""Other programs, by argument list: never a shell, always a deadline."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Protocol

from vmm.model.errors import HostError


class Runner(Protocol):
    """Runs a program and returns its standard output."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> bytes: ...


class HostRunner:
    """The Runner of the real host; raises HostError with what the program said."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> bytes:
        try:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except FileNotFoundError:
            raise HostError(
                f"{argv[0]}: program not found", f"install the package with {argv[0]}"
            ) from None
        except subprocess.TimeoutExpired:
            raise HostError(f"{argv[0]} did not end within {timeout:.0f} s") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise HostError(f"{argv[0]} failed with exit code {done.returncode}: {said}")
        return done.stdout
