"""A question before something is removed for good."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def confirm(warning: str, force: bool) -> bool:
    """Whether the user agrees; ``force`` does not ask, and no answer is a no."""
    if force:
        return True
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def reclaiming(kind: str) -> Iterator[None]:
    """Says at the end how much less the objects of ``kind`` (a row of ``system df``) take."""
    from vmm.cli.output import line
    from vmm.model.human import size

    before = _used(kind)
    yield
    line(f"Total reclaimed space: {size(max(0, before - _used(kind)))}")


def _used(kind: str) -> int:
    """Bytes; none when damage keeps them from being counted."""
    from vmm.cli import context
    from vmm.model.errors import VmmError

    with contextlib.suppress(VmmError):
        return int(next(r["Size"] for r in context.engine().df() if r["Type"] == kind))
    return 0
