"""Substitution, splitting and patterns against Docker's tables; hostile input stays cheap."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest

from vmm.dockerfile.ignore import Ignore, Pattern, read_patterns
from vmm.dockerfile.pattern import BadPattern, Matcher, _simulate, match, tokens
from vmm.dockerfile.wildcard import PatternError, Wildcard
from vmm.dockerfile.words import WordError, expand, split
from vmm.model.errors import InvalidDocument

ENV = {"PWD": "/home", "SHELL": "bash", "KOREAN": "한국어", "NULL": ""}


def test_substitution_rows(shared: Path) -> None:
    rows = (shared / "data/dockerfile/envVarTest").read_text().splitlines()
    seen = 0
    for number, row in enumerate(rows, 1):
        if not row.strip() or row.startswith("#"):
            continue
        platform, word, expected = (part.strip() for part in row.split("|"))
        if platform == "W":
            continue
        seen += 1
        try:
            got = expand(word, ENV)
        except WordError:
            got = "error"
        assert got == expected, f"line {number}: {word}"
    assert seen > 200


def test_modifier_rows(shared: Path) -> None:
    tables = json.loads((shared / "data/dockerfile/substitution.json").read_text())
    for row in tables["tc:243"]:
        env = dict(row["envs"]) if row["envs"] else {}
        if row.get("expectedErr"):
            with pytest.raises(WordError):
                expand(row["input"], env)
        else:
            assert expand(row["input"], env) == row["expected"], row["input"]
    for pattern in tables["invalid:25"]:
        with pytest.raises(PatternError):
            Wildcard(pattern)


def test_splitting_rows(shared: Path) -> None:
    env: dict[str, str] = {}
    lines = (shared / "data/dockerfile/wordsTest").read_text().splitlines()
    for line in lines:
        if line.startswith("#"):
            continue
        if line.startswith("ENV "):
            name, _, value = line[4:].lstrip().partition("=")
            env[name] = value
            continue
        word, _, expected = line.partition("|")
        word, wanted = word.strip(), expected.lstrip()
        try:
            got = ",".join(split(word, env))
        except WordError:
            got = "error"
        assert got == wanted, word


def test_ignore_rows(shared: Path) -> None:
    tables = json.loads((shared / "data/dockerfile/ignore-patterns.json").read_text())
    for pattern, text, expected in tables["tests:119"]:
        assert Ignore([pattern]).excluded(text) == expected, (pattern, text)
    for patterns, text, expected in tables["multiPatternTests:188"]:
        assert Ignore(patterns).excluded(text) == expected, (patterns, text)
    for pattern, text, expected, error in tables["matchTests"]:
        if error == "$nil":
            assert Ignore([pattern]).excluded(text) == expected, (pattern, text)
        else:
            with pytest.raises(InvalidDocument):
                Ignore([pattern])
            with pytest.raises(BadPattern):
                match(pattern, text)
    for pattern, kind, regexp, _ in tables["compileTests"]:
        compiled = Pattern(pattern)
        assert f"${compiled.kind}Match" == kind, pattern
        assert compiled.regexp == regexp, pattern
    with pytest.raises(InvalidDocument):
        Ignore(tables["patterns:376"])
    assert len(Ignore(tables["patterns:331"]).patterns) == 2


def test_both_ways_of_matching_agree(shared: Path) -> None:
    tables = json.loads((shared / "data/dockerfile/ignore-patterns.json").read_text())
    rows = [row[:2] for row in tables["tests:119"]]
    rows += [row[:2] for row in tables["matchTests"] if row[3] == "$nil"]
    for pattern, text in rows:
        parsed = tokens(pattern, double_star=True)
        assert _simulate(parsed, text) == Matcher(parsed).matches(text), (pattern, text)


def test_ignore_file_text() -> None:
    text = "\ufeff# note\n\n /a/b/ \n!  ./c\n#x\n//d\n"
    assert read_patterns(text) == ["a/b", "!c", "d"]
    ignore = Ignore(["*", "!docs", "docs/*.tmp"])
    assert ignore.excluded("x")
    assert not ignore.excluded("docs/readme")
    assert ignore.excluded("docs/a.tmp")
    assert Ignore(["a", "!a/b/c"]).may_contain("a/b")
    assert not Ignore(["a", "!a/b/c"]).may_contain("a/x")


def test_splitting_expose_and_quotes() -> None:
    assert split("$p '${p}'", {"p": "80 90"}) == ["80", "90", "${p}"]
    assert expand("`$x $x", {"x": "1"}, "`") == "$x 1"
    assert expand(r"C:\dir\$x", {"x": "1"}, "`") == r"C:\dir\1"


@pytest.mark.parametrize(
    "word",
    [
        "${A##" + "*a" * 2000 + "*b}",
        "${A//" + "*a" * 2000 + "*b/x}",
        "${A%%" + "?" * 5000 + "*b}",
        "${a:-" * 50_000,
        "$" * 100_000,
    ],
)
def test_hostile_substitutions_are_cheap(word: str) -> None:
    started = time.process_time()
    with contextlib.suppress(WordError):
        expand(word, {"A": "a" * 10_000})
    assert time.process_time() - started < 3


def test_words_do_not_grow_without_bound() -> None:
    with pytest.raises(WordError, match="grows"):
        expand("$A$A$A", {"A": "x" * 500_000})


def test_hostile_patterns_are_cheap() -> None:
    started = time.process_time()
    assert not match("*a" * 200 + "b", "a" * 2000)
    assert not Ignore(["**/" * 60 + "b"]).excluded("a/" * 600 + "c")
    assert time.process_time() - started < 5
