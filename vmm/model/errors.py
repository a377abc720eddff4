"""Every error a user can meet.

Raised low, printed once at the edge.  A message names the object and the place;
the hint says what to do next.  Exit codes are Docker's (docker-run(1), "Exit
status"): 125 vmm itself failed, 126 the command cannot be executed, 127 it was
not found, otherwise the workload's own.  Commands that run nothing end with 1.
"""

from __future__ import annotations


class VmmError(Exception):
    """Base of all errors meant for the user: what went wrong, and what to do."""

    #: Exit code of a plain command that ends with this error.
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(VmmError):
    """A wrong flag, value or combination on the command line."""

    exit_code = 125


class InvalidDocument(VmmError):
    """A file or document that does not say what it must; ``faults`` lists every fault found."""

    def __init__(self, where: str, faults: list[str], hint: str = "") -> None:
        super().__init__("\n".join(f"{where}: {fault}" for fault in faults), hint)
        self.where = where
        self.faults = faults


class NotFound(VmmError):
    """No such workload, image, volume or network."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"No such {kind}: {name}", hint)
        self.kind = kind
        self.name = name


class Conflict(VmmError):
    """The name, address, port or state is taken or does not allow this."""


class Unsupported(VmmError):
    """The backend or the host cannot honour an option; names one that can, if any."""


class HostError(VmmError):
    """The host refused: a missing program, privilege or kernel feature."""


class NoSpace(HostError):
    """A file system has no space or no inode left, or a quota is used up."""

    exit_code = 125


class CorruptStore(VmmError):
    """A stored object does not match its digest or its format."""


class LaunchError(VmmError):
    """The workload's process could not be started; ``step`` is the failing operation.

    The code is ``REFUSED``, 126 or 127 as above, or ``STOPPED`` + n when the workload was stopped
    by signal n before it ran.
    """

    REFUSED = 125
    STOPPED = 128

    def __init__(self, message: str, *, step: str = "", code: int = 125, hint: str = "") -> None:
        super().__init__(message, hint)
        self.step = step
        self.exit_code = code


class ShimLost(VmmError):
    """The workload's shim does not answer any more."""


class BuildError(VmmError):
    """A Dockerfile instruction failed: its line and exit code."""

    def __init__(self, message: str, *, line: int = 0, code: int = 1, hint: str = "") -> None:
        super().__init__(message, hint)
        self.line = line
        self.step_code = code
        self.exit_code = code or 1
