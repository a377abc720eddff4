"""Go's filepath.Match, which COPY sources and ``.dockerignore`` follow, and ``**``.

Patterns and names both come from a build context that nobody vouches for: a match is
tried by a regular expression only while its cost is bounded, else by simulating the
pattern's states, which is linear in both.
"""

from __future__ import annotations

import re

import msgspec

#: Steps a backtracking match may take before the simulation is used instead.
_BUDGET = 100_000
_ESCAPED = ".+()|{}$"


class BadPattern(ValueError):
    """A pattern with an unfinished class or escape."""


class Token(msgspec.Struct, frozen=True):
    """``kind``: char, any (but /), class, star (no /), all (anything), dirs (``(.*/)?``)."""

    kind: str
    char: str = ""
    ranges: tuple[tuple[str, str], ...] = ()
    negated: bool = False
    source: str = ""

    @property
    def repeats(self) -> bool:
        return self.kind in ("star", "all", "dirs")

    def accepts(self, char: str) -> bool:
        if self.kind == "char":
            return char == self.char
        if self.kind == "class":
            inside = any(low <= char <= high for low, high in self.ranges)
            return char != "/" and inside != self.negated
        return self.kind == "all" or char != "/"


def tokens(pattern: str, *, double_star: bool = False) -> list[Token]:
    """Parse; ``double_star``: ``**`` crosses directories (moby/patternmatcher)."""
    result, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and double_star and pattern.startswith("*", at):
            at += 2 if pattern.startswith("/", at + 1) else 1
            result.append(Token("all" if at == len(pattern) else "dirs"))
        elif char == "*":
            result.append(Token("star"))
        elif char == "?":
            result.append(Token("any"))
        elif char == "[":
            token, at = _char_class(pattern, at)
            result.append(token)
        else:
            if char == "\\":
                char, at = _escaped(pattern, at)
            result.append(Token("char", char))
    return result


def _escaped(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern):
        raise BadPattern(f"syntax error in pattern {pattern!r:.80}")
    return pattern[at], at + 1


def _char_class(pattern: str, at: int) -> tuple[Token, int]:
    start = at
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and pattern.startswith("]", at)):
        low, at = _class_char(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_char(pattern, at + 1)
        ranges.append((low, high))
    return Token("class", "", tuple(ranges), negated, pattern[start - 1 : at + 1]), at + 1


def _class_char(pattern: str, at: int) -> tuple[str, int]:
    if at >= len(pattern) or pattern[at] in "-]":
        raise BadPattern(f"syntax error in pattern {pattern!r:.80}")
    if pattern[at] == "\\":
        char, at = _escaped(pattern, at + 1)
    else:
        char, at = pattern[at], at + 1
    if at >= len(pattern):
        raise BadPattern(f"syntax error in pattern {pattern!r:.80}")
    return char, at


class Matcher:
    """A compiled list of tokens, matched against a whole path."""

    def __init__(self, parsed: list[Token]) -> None:
        self.tokens = parsed
        self._stars = sum(token.repeats for token in parsed)
        self.regexp = "^" + "".join(_regexp(token) for token in parsed) + "$"
        self._compiled: re.Pattern[str] | None = None

    def matches(self, text: str, *, parents: bool = False) -> bool:
        """Whether ``text``, or with ``parents`` one of its parent directories, matches."""
        if (len(text) + 1) ** self._stars > _BUDGET:
            return _simulate(self.tokens, text, parents=parents)
        if parents:
            return any(map(self.matches, (text, *parents_of(text))))
        if self._compiled is None:
            self._compiled = re.compile(
                "".join(_regexp(token, safe=True) for token in self.tokens), re.DOTALL
            )
        return self._compiled.fullmatch(text) is not None


def _regexp(token: Token, *, safe: bool = False) -> str:
    if token.kind == "char":
        quoted = re.escape(token.char) if safe else token.char
        return f"\\{token.char}" if not safe and token.char in _ESCAPED else quoted
    if token.kind == "class":
        return _safe_class(token) if safe else token.source
    return {"any": "[^/]", "star": "[^/]*", "all": ".*", "dirs": "(.*/)?"}[token.kind]


def _safe_class(token: Token) -> str:
    ranges = [(low, high) for low, high in token.ranges if low <= high]
    body = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges)
    if not body:
        return "[^/]" if token.negated else r"(?!)"
    return f"[^/{body}]" if token.negated else f"(?!/)[{body}]"


def parents_of(path: str) -> list[str]:
    """``a/b/c``: a, a/b."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _simulate(parsed: list[Token], text: str, *, parents: bool = False) -> bool:
    """Keep the set of states; ``~n`` is the state inside the directories of token n."""
    states = _closure(parsed, {0})
    for char in text:
        if parents and char == "/" and len(parsed) in states:
            return True
        following: set[int] = set()
        for state in states:
            following |= _advance(parsed, state, char)
        states = _closure(parsed, following)
        if not states:
            return False
    return len(parsed) in states


def _advance(parsed: list[Token], state: int, char: str) -> set[int]:
    if state < 0:
        return {state, ~state + 1} if char == "/" else {state}
    if state == len(parsed) or parsed[state].kind == "dirs":
        return set()
    token = parsed[state]
    if not token.accepts(char):
        return set()
    return {state if token.repeats else state + 1}


def _closure(parsed: list[Token], states: set[int]) -> set[int]:
    """Add the states reachable without reading: past every repeating token."""
    result, todo = set(), list(states)
    while todo:
        state = todo.pop()
        if state in result:
            continue
        result.add(state)
        if 0 <= state < len(parsed) and parsed[state].repeats:
            todo.append(state + 1)
            if parsed[state].kind == "dirs":
                todo.append(~state)
    return result


def match(pattern: str, name: str) -> bool:
    """filepath.Match(pattern, name) of Go; BadPattern for a malformed pattern."""
    return Matcher(tokens(pattern)).matches(name)


def has_wildcards(pattern: str) -> bool:
    """Whether ``pattern`` is more than a name; an escape alone is none."""
    at = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] in "*?[":
            return True
        at += 1
    return False
