"""How Go prints values (fmt's %v), and the functions of its templates with Docker's additions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any


def text(value: Any) -> str:
    """``value`` as fmt.Print writes it."""
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{text(k)}:{text(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(text, value)) + "]"
    return str(value)


def truth(value: Any) -> bool:
    """A value is false when it is the zero value of its type."""
    return bool(value)


def quote(value: str) -> str:
    """As strconv.Quote, for printable text."""
    return json.dumps(value, ensure_ascii=False)


def to_json(value: Any) -> str:
    """One line of JSON, keys in the given order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def index(value: Any, *keys: Any) -> Any:
    """``value[k1][k2]…``; a missing key of a mapping is its zero value, of a list an error."""
    for key in keys:
        if value is None:
            raise ValueError("index of untyped nil")
        if isinstance(value, Mapping):
            texts = all(isinstance(v, str) for v in value.values())
            value = value.get(key, "" if texts else None)
        elif isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise ValueError(f"index out of range: {text(key)}")
    return value


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    return any(type(first) is type(other) and first == other for other in others)


def _and(*values: Any) -> Any:
    return reduce(lambda a, b: b if truth(a) else a, values)


def _or(*values: Any) -> Any:
    return reduce(lambda a, b: a if truth(a) else b, values)


def _printf(form: str, *values: Any) -> str:
    """%v %s %d %q %t %% with a width and, of text, a precision, of fmt.Printf."""
    import re

    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        if precision is not None and isinstance(value, str):
            value = value[: int(precision[1:] or 0)]
        shown = quote(str(value)) if verb == "q" else text(value)
        wide = min(int(width or 0), 1000)
        return shown.ljust(wide) if "-" in flags else shown.rjust(wide)

    return re.sub(r"%(-?)(\d{0,4})(\.\d{0,4})?([vsdqt%])", one, form)


def _slice(value: Any, *bounds: int) -> Any:
    return value[slice(*bounds)] if len(bounds) > 1 else value[bounds[0] if bounds else 0 :]


def _print(*values: Any) -> str:
    """Spaces are put between operands when neither is a string (fmt.Print)."""
    out = ""
    for position, value in enumerate(values):
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            out += " "
        out += text(value)
    return out


class Labelled(dict[str, Any]):
    """A row with Docker's method ``.Label NAME``, which its JSON does not show."""

    def __init__(self, fields: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        super().__init__(fields)
        self.labels = labels


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "json": to_json,
    "index": index,
    "len": len,
    "slice": _slice,
    "upper": lambda s: s.upper(),
    "lower": lambda s: s.lower(),
    "title": lambda s: s.title(),
    "join": lambda items, separator: separator.join(map(text, items)),
    "split": lambda s, separator: s.split(separator),
    "pad": lambda s, left, right: " " * left + s + " " * right if s else s,
    "truncate": lambda s, length: s[:length],
    "print": _print,
    "println": lambda *values: " ".join(map(text, values)) + "\n",
    "printf": _printf,
    "eq": _equal,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "not": lambda value: not truth(value),
    "and": _and,
    "or": _or,
}
