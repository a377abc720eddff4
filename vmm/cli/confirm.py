"""A question before something is removed for good."""

from __future__ import annotations

import sys


def confirm(warning: str, force: bool) -> bool:
    """Whether the user agrees; ``force`` does not ask, and no answer is a no."""
    if force:
        return True
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
