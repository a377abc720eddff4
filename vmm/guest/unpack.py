"""Decompression by a program, for what Python's library cannot read."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import IO

from vmm.model.errors import HostError


def unpacked(program: str, source: IO[bytes]) -> Iterator[bytes]:
    """The pieces of what ``program -dcq`` (zstd, lz4) makes of an open file.

    EOFError when the program failed.  It is ended when no more pieces are wanted.
    """
    try:
        child = subprocess.Popen(
            [program, "-dcq"],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise HostError(
            f"{program} is not installed, so the kernel cannot be unpacked",
            f"install it: apt-get install {program}",
        ) from None
    with child:
        assert child.stdout is not None
        try:
            while piece := child.stdout.read(1 << 20):
                yield piece
        except GeneratorExit:
            child.kill()
            raise
        if child.wait():
            raise EOFError(f"{program} failed: damaged data")
