"""Help of every command, and that the table and the functions say the same."""

from __future__ import annotations

import pytest
from typer.core import TyperCommand

from vmm.cli import table
from vmm.cli.app import load, synopsis
from vmm.cli.main import main
from vmm.cli.table import Entry

COMMANDS = table.everything()
IDS = [words for words, _ in COMMANDS]


@pytest.mark.parametrize(("words", "entry"), COMMANDS, ids=IDS)
def test_help(words: str, entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: vmm {words} [OPTIONS] {entry.usage}".rstrip() + "\n")
    head, _, examples = text.partition("\nExamples:\n")
    assert "\nOptions:\n" in head
    lines = [line for line in examples.splitlines() if line.strip()]
    assert lines and any("vmm " in line for line in lines)


@pytest.mark.parametrize(("words", "entry"), COMMANDS, ids=IDS)
def test_table_agrees_with_docstring(words: str, entry: Entry) -> None:
    command: TyperCommand = load(entry)
    assert synopsis(command.help or "") == entry.summary


@pytest.mark.parametrize(("words", "entry"), COMMANDS, ids=IDS)
def test_every_option_has_help(words: str, entry: Entry) -> None:
    for param in load(entry).params:
        if param.param_type_name == "option" and not param.hidden:
            assert param.help, f"{words} {param.opts}"


@pytest.mark.parametrize(("words", "entry"), COMMANDS, ids=IDS)
def test_arguments_of_the_usage_line_are_those_of_the_function(words: str, entry: Entry) -> None:
    """As many required arguments as the usage line has words outside brackets."""
    arguments = [p for p in load(entry).params if p.param_type_name == "argument"]
    shown = entry.usage.replace("[:TAG]", "").replace(" [CONTAINER...]", "").split(" ")
    required = [word for word in shown if word and not word.startswith("[")]
    assert len(required) == sum(1 for p in arguments if p.required)


@pytest.mark.parametrize("group", [[], *([name] for name in table.GROUPS)])
def test_group_help_lists_all(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*group, "--help"]) == 0
    text = capsys.readouterr().out
    assert main(group) == 0
    assert capsys.readouterr().out == text
    entries = table.GROUPS[group[0]][1] if group else table.TOP
    for entry in entries.values():
        assert (f"  {entry.name}" in text and entry.summary in text) or entry.hidden
    assert "\nExamples:\n  vmm " in text
