"""Every backend does the same, and docs/backends.md says what was seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.cases import OWN, SHARED, Case, Refused, Stage, console

#: Set-up is apart: it starts libvirt and fetches a kernel.
pytestmark = pytest.mark.timeout(60, func_only=True)
TABLE = Path(__file__).parents[2] / "docs/backends.md"
#: What each body gave, by title and backend: "yes", or the refusal.
SEEN: dict[tuple[str, str], str] = {}

INTRODUCTION = """\
# What each backend does

Written by the tests: the same bodies (`tests/behaviour/cases.py`) run on every backend, and a
test fails when this table is not what they saw. `VMM_WRITE_TABLE=1 make behaviour` writes it
anew. An option that a backend cannot honour is refused with the message shown; nothing is
dropped silently.

| what | at the prompt | container | qemu |
|---|---|---|---|
"""


@pytest.mark.parametrize("case", (*SHARED, *OWN), ids=lambda case: case.body.__name__)
def test_behaves(stage: Stage, case: Case) -> None:
    try:
        case.body(stage)
        SEEN[case.title, stage.backend] = "yes"
    except Refused as refusal:
        assert stage.backend != "container" or case.body is console, refusal
        SEEN[case.title, stage.backend] = f"refused: {refusal}"


def _rows() -> Iterator[str]:
    for case in (*SHARED, *OWN):
        seen = (SEEN[case.title, backend] for backend in ("container", "qemu"))
        yield f"| {case.title} | `{case.example}` | {' | '.join(seen)} |\n"


def test_the_table_says_what_was_seen() -> None:
    if len(SEEN) < 2 * len((*SHARED, *OWN)):
        return  # a selection of the bodies ran: there is nothing to compare
    text = INTRODUCTION + "".join(_rows())
    if os.environ.get("VMM_WRITE_TABLE") == "1":
        TABLE.write_text(text)
    assert TABLE.read_text() == text
