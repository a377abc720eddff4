"""The parser against Docker's own tables, and the faults it must name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmm.dockerfile import Dockerfile, Instruction, analyse, parse
from vmm.dockerfile.parser import LineError, parse_json
from vmm.model.errors import InvalidDocument

#: How Go's %q writes control characters.
_CONTROL = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\x00"}


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(_CONTROL.get(char, char) for char in escaped) + '"'


def _dump(instruction: Instruction) -> str:
    """One line of the tables' dump: (instruction ["--flag" …] "argument" …)."""
    parts = [instruction.keyword.lower()]
    if instruction.flags:
        parts.append("[" + " ".join(map(_quoted, instruction.flags)) + "]")
    if instruction.keyword == "ONBUILD":
        inner = parse(instruction.args[0]).instructions[0]
        parts.append(_dump(inner))
    else:
        parts += map(_quoted, instruction.args)
    return "(" + " ".join(parts) + ")"


def _accepted(document: Dockerfile) -> list[str]:
    return [_dump(instruction) for instruction in document.instructions]


def test_accepts_what_docker_accepts(shared: Path) -> None:
    folders = sorted((shared / "data/dockerfile/parser-accept").iterdir())
    assert len(folders) >= 31
    wrong = {}
    for folder in folders:
        text = (folder / "Dockerfile").read_bytes().decode()
        expected = (folder / "result").read_text().splitlines()
        got = _accepted(parse(text, folder.name))
        if got != expected:
            wrong[folder.name] = [
                pair for pair in zip(got, expected, strict=False) if pair[0] != pair[1]
            ] or (len(got), len(expected))
    assert not wrong


def test_rejects_what_docker_rejects(shared: Path) -> None:
    for folder in sorted((shared / "data/dockerfile/parser-reject").iterdir()):
        with pytest.raises(InvalidDocument):
            parse((folder / "Dockerfile").read_text(), folder.name)


def test_exec_form_tables(shared: Path) -> None:
    tables = json.loads((shared / "data/dockerfile/exec-form.json").read_text())
    for text, expected in tables["validJSONArraysOfStrings"].items():
        assert parse_json(text) == tuple(expected), text
    for text in tables["invalidJSONArraysOfStrings"]:
        with pytest.raises(LineError):
            parse_json(text)


def test_every_fault_has_its_line() -> None:
    text = "\n".join(
        [
            "FROM scratch",
            "ENV x",
            "# a comment",
            "RUN --mount=type=cache true",
            "COPY a \\",
            "",
            "  --odd",
            "ONBUILD RUN true",
            "FETCH x",
            "COPY one",
            "HEALTHCHECK --interval=5 CMD x",
            "ADD https://example.org/x /x",
            "SHELL bash",
        ]
    )
    with pytest.raises(InvalidDocument) as caught:
        parse(text, "D")
    assert caught.value.faults == ["line 2: ENV must have two arguments"]
    with pytest.raises(InvalidDocument) as caught:
        analyse(parse(text.replace("ENV x", "ENV x=1"), "D"))
    assert caught.value.faults == [
        "line 4: flag --mount of RUN is not supported",
        "line 8: ONBUILD is not supported",
        "line 9: unknown instruction: FETCH",
        "line 10: COPY requires at least two arguments",
        "line 11: invalid duration '5' of --interval: write 30s, 1m30s or 500ms",
        "line 12: ADD of a remote source is not supported: https://example.org/x",
        'line 13: SHELL requires the arguments to be in JSON form: SHELL ["/bin/sh", "-c"]',
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("RUN true", "only ARG may be"),
        ("ARG a=b", "no FROM"),
        ("FROM a AS 1x", "invalid stage name"),
        ("FROM a AS x\nFROM b AS X", "used twice"),
        ("FROM a b", "requires either one argument"),
        ("FROM --platform=linux/arm64 a", "--platform of FROM is not supported"),
        ("FROM a\nCOPY --chown a b", "missing a value"),
        ("FROM a\nCOPY --chown=1 --chown=2 a b", "duplicate flag"),
        ("FROM a\nUSER", "exactly one"),
        ('FROM a\nVOLUME [""]', "empty string"),
        ("FROM a\nHEALTHCHECK CONNECT x", "try CMD"),
        ("FROM a\nHEALTHCHECK --interval=1us CMD x", "less than 1ms"),
        ("FROM a\nHEALTHCHECK --retries=-1 CMD x", "whole number"),
        ("FROM a\nRUN <<EOF\necho\nEOF\n", "heredocs"),
        ("FROM a\nCOPY <<EOF /x\necho\nEOF\n", "heredocs"),
        ("FROM a\nENV =x", "blank"),
        ("FROM a\nLABEL a=b c", "can't find ="),
        ("# escape=x\nFROM a", "invalid escape token"),
        ("# escape=`\n# escape=`\nFROM a", "only one escape"),
        ("FROM a\nRUN <<EOF\necho", "unterminated heredoc"),
    ],
)
def test_refusals(text: str, fault: str) -> None:
    with pytest.raises(InvalidDocument, match=fault):
        analyse(parse(text))


def test_lines_and_forms() -> None:
    document = parse('FROM a\n\nRUN one \\\n  # note\n\n  two\nCMD ["x", \'y\']\nCMD ["x"]\n')
    run, shell, exec_form = document.instructions[1:]
    assert (run.line, run.end_line, run.args) == (3, 6, ("one   two",))
    assert (shell.exec_form, shell.args) == (False, ("[\"x\", 'y']",))
    assert (exec_form.exec_form, exec_form.args) == (True, ("x",))


def test_hostile_texts_end_soon() -> None:
    for text in ("CMD " + "[" * 200_000, "FROM a\nENV " + "a=b " * 100_000, "\\\n" * 100_000):
        try:
            parse(text)
        except InvalidDocument as error:
            assert error.faults
    with pytest.raises(InvalidDocument, match="larger"):
        parse("#" * 2_000_000)
