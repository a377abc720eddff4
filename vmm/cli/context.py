"""The instance a command works on: chosen by ``--root``, made when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmm.engine.engine import Engine
    from vmm.settings import Settings


class _Chosen:
    root: str | None = None
    engine: Engine | None = None


def use(root: str | None) -> None:
    """Choose the instance for the commands of this process."""
    _Chosen.root, _Chosen.engine = root, None


def settings() -> Settings:
    from vmm.settings import load

    return load(_Chosen.root)


def engine() -> Engine:
    """The engine of the chosen instance."""
    if _Chosen.engine is None:
        from vmm.engine.engine import Engine

        _Chosen.engine = Engine(settings())
    return _Chosen.engine


def notices() -> list[str]:
    """What the engine wants said beside the result."""
    return _Chosen.engine.notices() if _Chosen.engine is not None else []


#: What an action returns for which nothing is printed.
SAID = "\0"


def for_each(
    references: Sequence[str], action: Callable[[str], object], *, heading: str = ""
) -> int:
    """Carry ``action`` out for each, print what it returns (the reference for None).

    An action that said all there is to say returns SAID. One that fails is reported and does not
    stop the others; the exit code is 1 then. ``heading`` and an empty line enclose the output.
    """
    from vmm.cli.output import line, report
    from vmm.model.errors import VmmError

    code = 0
    if heading and references:
        line(heading)
    for reference in references:
        try:
            result = action(reference)
        except VmmError as error:
            report(error)
            code = 1
        else:
            if result != SAID:
                line(reference if result is None else str(result))
            sys.stdout.flush()  # the next one may take long
    if heading and references:
        line("")
    return code
