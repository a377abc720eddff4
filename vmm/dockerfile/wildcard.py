"""Shell patterns of ``${name#pattern}`` and its kin: ``*``, ``?`` and escapes.

No backtracking: a pattern is a list of segments between stars, each placed by one
forward search, so that a hostile pattern costs no more than its length times the value's.
"""

from __future__ import annotations

import re

#: What a backslash may escape in a pattern; ``}`` and ``/`` lose theirs silently.
_ESCAPABLE = "*?\\"
_SILENT = "}/"


class PatternError(ValueError):
    """A pattern with an escape that means nothing."""


class Wildcard:
    """A parsed pattern; ``segments`` are the parts between stars as regular expressions
    of fixed length (literals and ``.``)."""

    def __init__(self, pattern: str) -> None:
        self._parts = _segments(pattern)
        self._forward = [_compile(part) for part in self._parts]
        self._backward = [_compile(part[::-1]) for part in self._parts[::-1]]

    def trim_prefix(self, value: str, *, longest: bool) -> str:
        """``value`` without the shortest (or longest) prefix that matches."""
        end = _match(self._forward, value, longest=longest)
        return value if end is None else value[end:]

    def trim_suffix(self, value: str, *, longest: bool) -> str:
        """``value`` without the shortest (or longest) suffix that matches."""
        end = _match(self._backward, value[::-1], longest=longest)
        return value if end is None else value[: len(value) - end]

    def replace(self, value: str, replacement: str, *, every: bool) -> str:
        """Replace the first (or every) leftmost longest match, literally."""
        result, position = [], 0
        while (found := self._find(value, position)) is not None:
            start, end = found
            result += [value[position:start], replacement]
            if end == start:
                result.append(value[end : end + 1])
                end += 1
            position = end
            if not every or position > len(value):
                break
        return "".join([*result, value[position:]])

    def _find(self, value: str, position: int) -> tuple[int, int] | None:
        first = self._forward[0].search(value, position)
        if first is None:
            return None
        end = _rest(self._forward, value, first.end(), longest=True)
        # A later start leaves less room for the rest: if it fails here, it fails everywhere.
        return None if end is None else (first.start(), end)


def _segments(pattern: str) -> list[list[str | None]]:
    """Parts between stars; None is any character."""
    parts: list[list[str | None]] = [[]]
    chars = iter(pattern)
    for char in chars:
        if char == "*":
            parts.append([])
        elif char == "?":
            parts[-1].append(None)
        elif char == "\\":
            following = next(chars, "")
            if following not in _ESCAPABLE + _SILENT or not following:
                raise PatternError(f"invalid escape '\\{following}'")
            parts[-1].append(following)
        else:
            parts[-1].append(char)
    return parts


def _compile(part: list[str | None]) -> re.Pattern[str]:
    return re.compile("".join("." if c is None else re.escape(c) for c in part), re.DOTALL)


def _match(parts: list[re.Pattern[str]], value: str, *, longest: bool) -> int | None:
    """End of the shortest or longest match that begins at 0."""
    first = parts[0].match(value)
    return None if first is None else _rest(parts, value, first.end(), longest=longest)


def _rest(parts: list[re.Pattern[str]], value: str, at: int, *, longest: bool) -> int | None:
    if len(parts) == 1:
        return at
    for part in parts[1:-1]:
        found = part.search(value, at)
        if found is None:
            return None
        at = found.end()
    return _last(parts[-1], value, at, longest=longest)


def _last(part: re.Pattern[str], value: str, at: int, *, longest: bool) -> int | None:
    if not longest:
        found = part.search(value, at)
        return None if found is None else found.end()
    if not part.pattern:
        return len(value)
    end = None
    while (found := part.search(value, at)) is not None:
        end, at = found.end(), found.start() + 1
    return end
