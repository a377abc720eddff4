"""A start that is under way while the workload's streams are carried already."""

from __future__ import annotations

import contextlib

from vmm.control.client import Control
from vmm.model.errors import LaunchError


class Starting:
    """START, sent over a connection of its own, and what the start holds until it is answered.

    ``taken`` (locks, the journal) is left in order once the workload runs or nobody waits for it
    any more, and with the error, so that it is undone, when the start failed.
    """

    def __init__(self, control: Control, taken: contextlib.ExitStack) -> None:
        self._control = control
        self._taken = taken
        control.begin_start()

    def fileno(self) -> int:
        """Readable when the answer is there."""
        return self._control.fileno()

    def answered(self, timeout: float = 0) -> bool:
        """Whether the start is over, waiting ``timeout`` seconds for it. Raises LaunchError, unless
        the workload was stopped meanwhile: that shows as its end."""
        with self._taken.pop_all() as taken:
            try:
                over = self._control.start_answer(timeout) is not None
            except LaunchError as error:
                if error.exit_code <= LaunchError.STOPPED:
                    raise
                over = True
            if not over:
                self._taken = taken.pop_all()
        return over

    def leave(self) -> None:
        """Let it go on without this process."""
        self._taken.close()
