"""Docker's way of writing flags (github.com/spf13/pflag), made canonical for the parser.

``-itd``, ``-p8080:80``, ``-e=X``, ``--flag=false`` and flags after arguments all
become ``--long=value`` options followed by the arguments. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vmm.model.errors import UsageError


class Flag(NamedTuple):
    """One option: its first long name, and for a boolean that is true by default its negation."""

    name: str
    boolean: bool
    negative: str = ""


class Parsed(NamedTuple):
    options: list[str]
    arguments: list[str]


_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


def normalise(args: Iterable[str], flags: Mapping[str, Flag], *, stop_at_argument: bool) -> Parsed:
    """Split ``args`` into canonical options and arguments; ``flags`` has every name with dashes.

    With ``stop_at_argument`` all that follows the first argument belongs to it.
    """
    reader = _Reader(list(args), flags)
    while reader.args:
        word = reader.args.pop(0)
        if word == "--":
            reader.arguments += reader.args
            break
        if word == "-" or not word.startswith("-"):
            reader.arguments.append(word)
            if stop_at_argument:
                reader.arguments += reader.args
                break
        elif word.startswith("--"):
            reader.long(word)
        else:
            reader.bundle(word)
    return Parsed(reader.options + reader.switches(), reader.arguments)


class _Reader:
    def __init__(self, args: list[str], flags: Mapping[str, Flag]) -> None:
        self.args = args
        self.flags = flags
        self.options: list[str] = []
        self.arguments: list[str] = []
        self._booleans: dict[Flag, bool] = {}

    def long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if name not in self.flags:
            raise UnknownFlag(f"unknown flag: {name}", name)
        flag = self.flags[name]
        if flag.boolean:
            self._boolean(flag, value if equals else "true", name)
        elif equals:
            self._valued(flag, value)
        else:
            self._valued(flag, self._next(f"flag needs an argument: {name}"))

    def bundle(self, word: str) -> None:
        """``-it``, ``-p80``, ``-p=80``, ``-it=false``."""
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            name = f"-{letter}"
            if name not in self.flags:
                raise UnknownFlag(f"unknown shorthand flag: '{letter}' in {word}", name)
            flag = self.flags[name]
            if flag.boolean:
                assigned = letters.startswith("=")
                self._boolean(flag, letters[1:] if assigned else "true", name)
                letters = "" if assigned else letters
                continue
            missing = f"flag needs an argument: '{letter}' in {word}"
            self._valued(flag, letters.removeprefix("=") if letters else self._next(missing))
            return

    def _next(self, missing: str) -> str:
        if not self.args:
            raise UsageError(missing)
        return self.args.pop(0)

    def _valued(self, flag: Flag, value: str) -> None:
        self.options.append(f"{flag.name}={value}")

    def _boolean(self, flag: Flag, text: str, name: str) -> None:
        if text not in _TRUE | _FALSE:
            raise UsageError(
                f'invalid argument "{text:.80}" for "{name}" flag: strconv.ParseBool: parsing'
                f' "{text:.80}": invalid syntax',
                "use true or false",
            )
        self._booleans[flag] = text in _TRUE

    def switches(self) -> list[str]:
        """The booleans as last said."""
        chosen = (f.name if on else f.negative for f, on in self._booleans.items())
        return [name for name in chosen if name]


class UnknownFlag(UsageError):
    """No such flag here; ``flag`` is it."""

    def __init__(self, message: str, flag: str) -> None:
        super().__init__(message)
        self.flag = flag
