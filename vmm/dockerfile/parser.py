"""Lines to instructions: directives, comments, continuations, flags, exec and shell form.

The rules are those of Docker's Dockerfile reference and of its public parser tables.
Nothing is judged here beyond syntax; stages.py knows what an instruction may say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import msgspec

from vmm.model.errors import InvalidDocument

#: Bytes of a Dockerfile; real ones are a few kilobytes.
MAX_SIZE = 1 << 20
_DIRECTIVES = ("syntax", "escape", "check")
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<\s]+)$")
_WITH_HEREDOC = ("ADD", "COPY", "RUN")


class Heredoc(msgspec.Struct, frozen=True, kw_only=True):
    """``<<NAME`` and the lines up to NAME."""

    name: str
    content: str
    #: Variables in the content are replaced (the name was not quoted).
    expand: bool


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction as written. ``keyword`` is upper case; lines count from 1."""

    keyword: str
    #: Words, pairs (``ENV``: name, value, separator …) or the whole rest, by the instruction.
    args: tuple[str, ...]
    #: The arguments were a JSON array (exec form).
    exec_form: bool
    flags: tuple[str, ...]
    line: int
    end_line: int
    #: The logical line, continuations joined.
    original: str
    heredocs: tuple[Heredoc, ...] = ()


class Dockerfile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    instructions: tuple[Instruction, ...]
    escape: str = "\\"
    syntax: str = ""
    check: str = ""


class LineError(ValueError):
    """A fault in one logical line."""


def parse(text: str, name: str = "Dockerfile") -> Dockerfile:
    """The instructions of ``text``; InvalidDocument lists every fault with its line."""
    if len(text) > MAX_SIZE:
        raise InvalidDocument(name, [f"is larger than {MAX_SIZE} bytes"])
    return _Parser(text, name).run()


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self._lines = text.removeprefix("\ufeff").split("\n")
        self._name = name
        self._at = 0
        self._faults: list[str] = []
        self._directives: dict[str, str] = {}

    def run(self) -> Dockerfile:
        self._read_directives()
        escape = self._directives.get("escape", "\\")
        if escape not in ("\\", "`"):
            self._faults.append(f"invalid escape token {escape!r:.20}: must be ` or \\")
            escape = "\\"
        instructions = self._read_instructions(escape)
        if not instructions and not self._faults:
            self._faults.append("the file contains no instructions")
        if self._faults:
            raise InvalidDocument(self._name, self._faults)
        return Dockerfile(
            name=self._name,
            instructions=tuple(instructions),
            escape=escape,
            syntax=self._directives.get("syntax", ""),
            check=self._directives.get("check", ""),
        )

    def _read_directives(self) -> None:
        """Directives are the comments before everything else, up to the first other line."""
        for number, line in enumerate(self._lines, 1):
            found = _DIRECTIVE.match(line.rstrip("\r"))
            key = found[1].lower() if found else ""
            if not found or key not in _DIRECTIVES:
                return
            if key in self._directives:
                self._faults.append(f"line {number}: only one {key} directive can be used")
            self._directives[key] = found[2]

    def _read_instructions(self, escape: str) -> list[Instruction]:
        token = re.escape(escape)
        continuation = re.compile(rf"(?:(?<=[^{token}])|^){token}[ \t]*$")
        instructions = []
        while self._at < len(self._lines):
            start = self._at + 1
            line = self._logical_line(continuation)
            if line is None:
                continue
            try:
                instructions.append(self._instruction(line, start, escape))
            except LineError as error:
                self._faults.append(f"line {start}: {error}")
        return instructions

    def _logical_line(self, continuation: re.Pattern[str]) -> str | None:
        """The next line with its continuations; comments and empty lines between are dropped."""
        parts: list[str] = []
        while self._at < len(self._lines):
            raw = self._lines[self._at].rstrip("\r")
            self._at += 1
            if raw.lstrip().startswith("#") or not raw.strip():
                if not parts:
                    return None
                continue
            part = raw if parts else raw.lstrip()
            shortened = continuation.sub("", part)
            parts.append(shortened)
            if shortened == part:
                break
        line = "".join(parts)
        return line if line.strip() else None

    def _instruction(self, line: str, start: int, escape: str) -> Instruction:
        keyword, _, rest = _partition(line.strip())
        keyword = keyword.upper()
        flags, rest = _take_flags(rest, escape)
        heredocs = self._heredocs(rest) if keyword in _WITH_HEREDOC and "<<" in rest else ()
        args, exec_form = _SYNTAX.get(keyword, _whole)(rest, keyword, escape)
        return Instruction(
            keyword=keyword,
            args=args,
            exec_form=exec_form,
            flags=flags,
            line=start,
            end_line=self._at,
            original=line.strip(),
            heredocs=heredocs,
        )

    def _heredocs(self, rest: str) -> tuple[Heredoc, ...]:
        found = []
        for word in rest.split():
            match = _HEREDOC.match(word)
            if match:
                found.append(self._heredoc(match[3], strip_tabs=bool(match[2])))
        return tuple(found)

    def _heredoc(self, quoted: str, *, strip_tabs: bool) -> Heredoc:
        name = quoted.strip("'\"")
        content: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip("\r")
            self._at += 1
            if strip_tabs:
                line = line.lstrip("\t")
            if line == name:
                return Heredoc(
                    name=name, content="".join(f"{c}\n" for c in content), expand=name == quoted
                )
            content.append(line)
        raise LineError(f"unterminated heredoc <<{name:.80}")


def _partition(line: str) -> tuple[str, str, str]:
    found = _BLANKS.search(line)
    return (line[: found.start()], " ", line[found.end() :]) if found else (line, "", "")


def _take_flags(rest: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Leading ``--name[=value]`` words and what follows them; ``--`` ends the flags."""
    flags = []
    rest = rest.strip()
    while rest.startswith("--"):
        raw = next(iter(raw_words(rest, escape, limit=1)), "")
        rest = rest[len(raw) :].lstrip()
        if raw == "--":
            break
        flags.append(_unquote(raw, escape))
    return tuple(flags), rest


def _unquote(word: str, escape: str) -> str:
    result, quote, chars = [], "", iter(word)
    for char in chars:
        if char == escape and quote != "'":
            result.append(next(chars, ""))
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
        else:
            result.append(char)
    return "".join(result)


def raw_words(rest: str, escape: str, limit: int = 0) -> list[str]:
    """Split at blanks outside quotes, keeping quotes and escapes as written."""
    words: list[str] = []
    start, at, quote = -1, 0, ""
    while at < len(rest):
        char = rest[at]
        if start < 0 and not char.isspace():
            start = at
        if start >= 0 and not quote and char.isspace():
            words.append(rest[start:at])
            start = -1
            if len(words) == limit:
                return words
        elif char == escape and quote != "'":
            at += 1
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        at += 1
    if start >= 0:
        last = rest[start:]
        words.append(last[:-1] if at > len(rest) else last)
    return [word for word in words if word]


_Parsed = tuple[tuple[str, ...], bool]


def parse_json(rest: str) -> tuple[str, ...] | None:
    """The strings of a JSON array; None: not JSON (shell form); LineError: other values in it."""
    if not rest.lstrip().startswith("["):
        return None
    try:
        values = json.loads(rest, parse_constant=_no_constant)
    except RecursionError:
        raise LineError("only strings are allowed in an exec form array") from None
    except ValueError:
        return None
    if not all(isinstance(value, str) for value in values):
        raise LineError("only strings are allowed in an exec form array")
    return tuple(_LONE_SURROGATE.sub("\ufffd", value) for value in values)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _whole(rest: str, keyword: str, escape: str) -> _Parsed:
    return ((rest,) if rest else ()), False


def _blank_separated(rest: str, keyword: str, escape: str) -> _Parsed:
    return (tuple(_BLANKS.split(rest)) if rest else ()), False


def _maybe_json(rest: str, keyword: str, escape: str) -> _Parsed:
    values = parse_json(rest)
    return _whole(rest, keyword, escape) if values is None else (values, True)


def _maybe_json_list(rest: str, keyword: str, escape: str) -> _Parsed:
    values = parse_json(rest)
    return _blank_separated(rest, keyword, escape) if values is None else (values, True)


def _words(rest: str, keyword: str, escape: str) -> _Parsed:
    return tuple(raw_words(rest, escape)), False


def _pairs(rest: str, keyword: str, escape: str) -> _Parsed:
    """``ENV name value`` or ``ENV name=value …`` as (name, value, separator) triples."""
    words = raw_words(rest, escape)
    if not words:
        return (), False
    if "=" not in words[0]:
        name, blank, value = _partition(rest)
        if not blank:
            raise LineError(f"{keyword} must have two arguments")
        return (name, value, ""), False
    triples: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise LineError(f"can't find = in {word!r:.80}: must be of the form name=value")
        triples += [name, value, "="]
    return tuple(triples), False


def _health(rest: str, keyword: str, escape: str) -> _Parsed:
    if not rest:
        return (), False
    kind, _, command = _partition(rest)
    args, exec_form = _maybe_json(command, keyword, escape)
    return (kind, *args), exec_form


_SYNTAX: dict[str, Callable[[str, str, str], _Parsed]] = {
    "ADD": _maybe_json_list,
    "ARG": _words,
    "CMD": _maybe_json,
    "COPY": _maybe_json_list,
    "ENTRYPOINT": _maybe_json,
    "ENV": _pairs,
    "EXPOSE": _blank_separated,
    "FROM": _blank_separated,
    "HEALTHCHECK": _health,
    "LABEL": _pairs,
    "RUN": _maybe_json,
    "SHELL": _maybe_json,
    "VOLUME": _maybe_json_list,
}
