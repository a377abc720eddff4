"""What a full disk means for the use-cases: which of them may use the reserve, and what is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vmm.engine.context import Context
from vmm.ports.space import explained


class _Face(Protocol):
    ctx: Context


F = TypeVar("F", bound=_Face)
T = TypeVar("T")
P = ParamSpec("P")


def makes_room(use_case: Callable[Concatenate[F, P], T]) -> Callable[Concatenate[F, P], T]:
    """A use-case that gives room back: its own small files may come out of the reserve."""

    @wraps(use_case)
    def with_reserve(self: F, /, *args: P.args, **options: P.kwargs) -> T:
        with self.ctx.reserve.opened():
            return use_case(self, *args, **options)

    return with_reserve


def tells_full_disk(face: type[F]) -> type[F]:
    """Every use-case of ``face`` that meets a full file system ends with NoSpace."""
    for name, use_case in list(vars(face).items()):
        if isinstance(use_case, FunctionType) and not name.startswith("_"):
            setattr(face, name, _telling(use_case))
    return face


def _telling(use_case: Callable[Concatenate[F, P], T]) -> Callable[Concatenate[F, P], T]:
    @wraps(use_case)
    def telling(self: F, /, *args: P.args, **options: P.kwargs) -> T:
        with explained(self.ctx.root, self.ctx.run_dir, os.environ.get("TMPDIR") or "/tmp"):
            return use_case(self, *args, **options)

    return telling
