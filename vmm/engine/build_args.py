"""ARG: which are declared, what they are worth, and which were never asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Usable without ARG, and not part of history or cache unless declared (Docker's reference,
#: "Predefined ARGs").
PREDEFINED = frozenset(
    name
    for base in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (base, base.upper())
)


class BuildArgs:
    def __init__(self, given: Mapping[str, str | None], environ: Mapping[str, str]) -> None:
        """``given``: --build-arg values; None takes the value from ``environ``, if it is there."""
        self._given = {
            name: value if value is not None else environ.get(name) for name, value in given.items()
        }
        self._global: dict[str, str | None] = {}
        self._stage: dict[str, str | None] = {}
        self._used: set[str] = set()

    def start_stage(self) -> None:
        self._stage = {}

    def declare_global(self, name: str, default: str | None) -> None:
        self._used.add(name)
        self._global[name] = default

    def declare(self, name: str, default: str | None) -> None:
        """ARG in a stage; without a default it takes a global ARG's value."""
        self._used.add(name)
        if default is None:
            default = self.globals().get(name)
        self._stage[name] = default

    def globals(self) -> dict[str, str]:
        """The ARGs before the first FROM that have a value."""
        return self._valued(self._global)

    def visible(self, env: Iterable[str]) -> dict[str, str]:
        """What instructions of the stage see; ENV wins over ARG."""
        predefined: dict[str, str | None] = dict.fromkeys(PREDEFINED & self._given.keys())
        return _without(self._valued({**predefined, **self._stage}), env)

    def recorded(self, env: Iterable[str]) -> list[str]:
        """``name=value`` of the declared ones, sorted: history and cache depend on them."""
        values = _without(self._valued(self._stage), env)
        return sorted(f"{name}={value}" for name, value in values.items())

    def unused(self) -> list[str]:
        return sorted(self._given.keys() - self._used - PREDEFINED)

    def _valued(self, declared: Mapping[str, str | None]) -> dict[str, str]:
        values = {}
        for name, default in declared.items():
            given = self._given.get(name)
            value = given if given is not None else default
            if value is not None:
                values[name] = value
        return values


def _without(values: dict[str, str], env: Iterable[str]) -> dict[str, str]:
    names = {item.partition("=")[0] for item in env}
    return {name: value for name, value in values.items() if name not in names}
