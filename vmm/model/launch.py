"""The launch plan: what the native core does, in order, to start a process in isolation.

A plan is data.  The Python side decides every step; the C side (``native/``)
carries the steps out and names the one that fails.  native/LAUNCH.md lists the
operations and their arguments.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterable
from typing import NamedTuple

MAGIC = b"VMMLP1\n"


class Op(NamedTuple):
    """One operation: its name and its arguments, all text or bytes."""

    name: str
    args: tuple[str | bytes, ...] = ()

    def __str__(self) -> str:
        shown = (f"<{len(a)} bytes>" if isinstance(a, bytes) else shlex.quote(a) for a in self.args)
        return " ".join((self.name, *shown))


def op(name: str, *args: str | bytes | int) -> Op:
    """Make an operation; integers are written in decimal."""
    return Op(name, tuple(str(a) if isinstance(a, int) else a for a in args))


class LaunchPlan(NamedTuple):
    """``shim``: how the process is kept; ``host``: steps outside; ``child``: steps inside."""

    shim: tuple[Op, ...]
    host: tuple[Op, ...]
    child: tuple[Op, ...]
    #: Further artefacts by file name, kept beside the plan (a guest's ``domain.xml``).
    documents: tuple[tuple[str, str], ...] = ()

    def sections(self) -> tuple[tuple[str, tuple[Op, ...]], ...]:
        return (("shim", self.shim), ("host", self.host), ("child", self.child))

    def encode(self) -> bytes:
        """The plan as the native core reads it."""
        records = [MAGIC]
        for section, ops in self.sections():
            records.append(encode_record(("section", section)))
            records.append(encode_ops(ops))
        return b"".join(records)

    def render(self) -> str:
        """The plan as text, one operation a line, for people and golden tests."""
        lines: list[str] = []
        for section, ops in self.sections():
            lines.append(f"[{section}]")
            lines.extend(str(o) for o in ops)
        for name, text in self.documents:
            lines += [f"[{name}]", text.rstrip("\n")]
        return "\n".join(lines) + "\n"


def encode_record(args: Iterable[str | bytes]) -> bytes:
    """u32le count, then for each argument u32le length, the bytes and a NUL (not counted)."""
    parts = [a.encode("utf-8", "surrogateescape") if isinstance(a, str) else a for a in args]
    out = [struct.pack("<I", len(parts))]
    for part in parts:
        out += (struct.pack("<I", len(part)), part, b"\0")
    return b"".join(out)


def encode_ops(ops: Iterable[Op]) -> bytes:
    """Operations alone, without header or sections (what an exec request carries)."""
    return b"".join(encode_record((o.name, *o.args)) for o in ops)
