"""Printing: lines, errors, tables and ``--format``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.model.errors import VmmError


def line(text: str) -> None:
    """One line to standard output; undecodable bytes as they came."""
    write((text + "\n").encode("utf-8", "surrogateescape"))


def write(data: bytes) -> None:
    sys.stdout.buffer.write(data)


def note(text: str) -> None:
    """One line to standard error, after what was printed before it."""
    sys.stdout.flush()
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """``text`` without control characters that could drive a terminal."""
    return "".join(c if c >= " " or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def report(error: VmmError) -> None:
    """An error as the user sees it: what, and what to do."""
    note(f"vmm: {error.message}" + (f"\n  {error.hint}" if error.hint else ""))


def print_json(value: Any) -> None:
    """Indented by four, as Docker's."""
    import json

    line(json.dumps(value, indent=4, ensure_ascii=False))


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of at least ten, three apart; the last is as long as it is (Go's tabwriter)."""
    count = max((len(row) for row in rows), default=0)
    widths = [max(10, 3 + max(len(row[i]) for row in rows if i < len(row))) for i in range(count)]
    return [
        "".join(cell.ljust(widths[i]) for i, cell in enumerate(row[:-1])) + row[-1]
        for row in rows
        if row
    ]


def print_rows(
    rows: Sequence[dict[str, Any]], form: str | None, default: str, headers: dict[str, str]
) -> None:
    """Rows by ``--format``: ``table TEMPLATE``, ``json``, a template, or the ``default`` table."""
    form = default if form in {None, "", "table"} else form
    assert form is not None
    if form == "json":
        form = "{{json .}}"
    form = form.replace("\\t", "\t").replace("\\n", "\n")
    from vmm.model.template import Template

    is_table = form.startswith("table ")
    template = Template(form.removeprefix("table ").strip(" ") if is_table else form)
    lines = [template.render(row) for row in rows]
    if not is_table:
        for text in lines:
            line(text)
        return
    fields = {name: name.upper() for name in (rows[0] if rows else {})} | headers
    heading = template.render(_Headings(fields))
    for text in align([heading.split("\t"), *(text.split("\t") for text in lines)]):
        line(text)


class _Headings(dict[str, str]):
    """Column headings; any field of an empty list has its own name as heading."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> str:
        return key.upper()


def print_inspected(values: Sequence[dict[str, Any]], form: str | None) -> None:
    """Documents as one JSON array, or each by a template."""
    if form in {None, "", "json"}:
        print_json(list(values)) if form != "json" else line(_compact(list(values)))
        return
    from vmm.model.template import Template

    assert form is not None
    template = Template(form.replace("\\t", "\t").replace("\\n", "\n"))
    for value in values:
        line(template.render(value))


def _compact(value: Any) -> str:
    from vmm.model.gotext import to_json

    return to_json(value)
