"""The typed commands of a Dockerfile. ``line`` and ``text`` are where and what was written."""

from __future__ import annotations

import msgspec

from vmm.model.image import Healthcheck


class Command(msgspec.Struct, frozen=True, kw_only=True):
    line: int
    text: str


class From(Command, frozen=True, kw_only=True):
    image: str
    #: Lower case; "" for an unnamed stage.
    alias: str = ""


class Run(Command, frozen=True, kw_only=True):
    args: tuple[str, ...]
    exec_form: bool


class Copy(Command, frozen=True, kw_only=True):
    """COPY, or ADD when ``extract``."""

    sources: tuple[str, ...]
    destination: str
    extract: bool = False
    #: Stage name, stage number or image of ``--from``.
    origin: str = ""
    chown: str = ""
    chmod: str = ""

    @property
    def keyword(self) -> str:
        return "ADD" if self.extract else "COPY"


class Pairs(Command, frozen=True, kw_only=True):
    pairs: tuple[tuple[str, str], ...]


class Env(Pairs, frozen=True, kw_only=True):
    pass


class Label(Pairs, frozen=True, kw_only=True):
    pass


class Arg(Command, frozen=True, kw_only=True):
    #: Name and default; None: no default.
    items: tuple[tuple[str, str | None], ...]


class Maintainer(Command, frozen=True, kw_only=True):
    name: str


class Expose(Command, frozen=True, kw_only=True):
    ports: tuple[str, ...]


class Volume(Command, frozen=True, kw_only=True):
    paths: tuple[str, ...]


class User(Command, frozen=True, kw_only=True):
    user: str


class Workdir(Command, frozen=True, kw_only=True):
    path: str


class Entrypoint(Command, frozen=True, kw_only=True):
    args: tuple[str, ...]
    exec_form: bool


class Cmd(Command, frozen=True, kw_only=True):
    args: tuple[str, ...]
    exec_form: bool


class Shell(Command, frozen=True, kw_only=True):
    args: tuple[str, ...]


class StopSignal(Command, frozen=True, kw_only=True):
    signal: str


class Health(Command, frozen=True, kw_only=True):
    check: Healthcheck
