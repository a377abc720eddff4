"""Variable substitution and word splitting as a Dockerfile does them.

The grammar is the one of Docker's reference ("Environment replacement") and of its
public test tables: ``$x ${x}`` with the modifiers ``- :- + :+ ? :? # ## % %% / //``,
single and double quotes, and the escape character of the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.dockerfile.wildcard import PatternError, Wildcard

#: Characters a word may grow to; ``ENV A=$A$A`` doubles with each line.
MAX_WORD = 1 << 20
#: ``${a:-${a:-…}}`` may nest this deep.
MAX_DEPTH = 100
_SPECIAL = "@*#?-$!0"


class WordError(ValueError):
    """A word that cannot be processed; the text says why."""


def expand(word: str, env: Mapping[str, str], escape: str = "\\") -> str:
    """``word`` with variables replaced and quotes removed, as one word."""
    return _Lexer(word, env, escape).run()[0]


def split(word: str, env: Mapping[str, str], escape: str = "\\") -> list[str]:
    """The words of ``word``; an unquoted variable's value is split too."""
    return _Lexer(word, env, escape).run()[1]


class _Words:
    """Collects words; ``raw`` characters never separate."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._word: list[str] = []
        self._open = False

    def add(self, text: str) -> None:
        for char in text:
            if not char.isspace():
                self.raw(char)
            elif self._open:
                self._close()

    def raw(self, text: str) -> None:
        self._word.append(text)
        self._open = True

    def _close(self) -> None:
        if word := "".join(self._word):
            self._done.append(word)
        self._word, self._open = [], False

    def words(self) -> list[str]:
        self._close()
        return self._done


class _Lexer:
    def __init__(self, text: str, env: Mapping[str, str], escape: str) -> None:
        self._text = text
        self._at = 0
        self._env = env
        self._escape = escape
        #: Keep escape characters (the word is a pattern, which has escapes of its own).
        self._keep = False
        self._depth = 0
        self._size = 0

    def run(self) -> tuple[str, list[str]]:
        return self._until("", keep=False)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _until(self, stop: str, *, keep: bool) -> tuple[str, list[str]]:
        """Process up to ``stop`` ("": the end)."""
        before, self._keep = self._keep, keep
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise WordError("substitutions are nested too deeply")
        result: list[str] = []
        words = _Words()
        try:
            while (char := self._peek()) and (not stop or char != stop):
                self._step(char, result, words)
        finally:
            self._keep = before
            self._depth -= 1
        if stop and not char:
            raise WordError(f"unexpected end of statement while looking for matching {stop}")
        self._at += len(stop)
        return "".join(result), words.words()

    def _step(self, char: str, result: list[str], words: _Words) -> None:
        if char == "$":
            value = self._dollar()
            words.add(value)
        elif char == "'":
            value = self._single()
            words.raw(value)
        elif char == '"':
            value = self._double()
            words.raw(value)
        else:
            value = self._plain(words)
        result.append(value)
        self._count(value)

    def _count(self, value: str) -> None:
        self._size += len(value)
        if self._size > MAX_WORD:
            raise WordError(f"the word grows beyond {MAX_WORD} characters")

    def _plain(self, words: _Words) -> str:
        char = self._next()
        if char != self._escape:
            words.add(char)
            return char
        value = (char if self._keep else "") + self._next()
        if value:
            words.raw(value)
        return value

    def _single(self) -> str:
        """Everything is taken as it is, up to the next single quote."""
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise WordError("unexpected end of statement while looking for matching single-quote")
        value = self._text[self._at + 1 : end]
        self._at = end + 1
        return value

    def _double(self) -> str:
        """As it is, but for variables and escaped ``"``, ``$`` and escape characters."""
        self._next()
        result = []
        while (char := self._peek()) != '"':
            if not char:
                raise WordError(
                    "unexpected end of statement while looking for matching double-quote"
                )
            result.append(self._dollar() if char == "$" else self._quoted())
            self._count(result[-1])
        self._next()
        return "".join(result)

    def _quoted(self) -> str:
        char = self._next()
        if char != self._escape:
            return char
        kept = char if self._keep else ""
        following = self._peek()
        if not following:
            return kept
        if following in ('"', "$", self._escape):
            return kept + self._next()
        return kept + char

    def _dollar(self) -> str:
        self._next()
        if self._peek() != "{":
            name = self._name()
            return self._env.get(name, "") if name else "$"
        self._next()
        following = self._peek()
        if not following:
            raise WordError("syntax error: missing '}'")
        if following in "{}:":
            raise WordError("syntax error: bad substitution")
        return self._braces(self._name())

    def _name(self) -> str:
        first = self._peek()
        if first and first in _SPECIAL and not first.isdigit():
            return self._next()
        start = self._at
        if first.isdigit():
            while self._peek().isdigit():
                self._at += 1
        else:
            while (char := self._peek()) and (char.isalnum() or char == "_"):
                self._at += 1
        return self._text[start : self._at]

    def _braces(self, name: str) -> str:
        """What follows the name in ``${name…}``."""
        modifier = self._next()
        if modifier == "}":
            return self._env.get(name, "")
        if modifier == "/":
            return self._replace(name)
        empty_is_unset = modifier == ":"
        if empty_is_unset:
            modifier = self._next()
        if not modifier:
            raise WordError("syntax error: missing '}'")
        if modifier in "-+?":
            return self._default(name, modifier, empty_is_unset)
        if modifier in "#%" and not empty_is_unset:
            return self._trim(name, modifier)
        shown = (":" if empty_is_unset else "") + modifier
        raise WordError(f"unsupported modifier ({shown}) in substitution")

    def _operand(self, stop: str, *, keep: bool) -> str:
        return self._until(stop, keep=keep)[0]

    def _default(self, name: str, modifier: str, empty_is_unset: bool) -> str:
        word = self._operand("}", keep=False)
        value = self._env.get(name)
        is_set = bool(value) if empty_is_unset else value is not None
        if modifier == "+":
            return word if is_set else ""
        if is_set:
            return value or ""
        if modifier == "-":
            return word
        what = "is not allowed to be empty" if value == "" else "is not allowed to be unset"
        raise WordError(f"{name}: {word or what}")

    def _trim(self, name: str, modifier: str) -> str:
        pattern = self._operand("}", keep=True)
        value = self._env.get(name, "")
        longest = pattern.startswith(modifier)
        wildcard = self._wildcard(pattern[1:] if longest else pattern)
        if modifier == "#":
            return wildcard.trim_prefix(value, longest=longest)
        return wildcard.trim_suffix(value, longest=longest)

    def _replace(self, name: str) -> str:
        every = self._peek() == "/"
        if every:
            self._next()
        pattern = self._operand("/", keep=True)
        replacement = self._operand("}", keep=True)
        value = self._env.get(name)
        if value is None:
            return ""
        return self._wildcard(pattern).replace(value, replacement, every=every)

    def _wildcard(self, pattern: str) -> Wildcard:
        try:
            return Wildcard(pattern)
        except PatternError as error:
            raise WordError(f"bad pattern {pattern!r:.80}: {error}") from None
