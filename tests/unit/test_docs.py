"""The documentation says what is there: its commands and flags exist, its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from vmm.cli import app, refused, table
from vmm.model.errors import VmmError
from vmm.settings import Settings

REPO = Path(__file__).parents[2]
WRITTEN = sorted([REPO / "README.md", REPO / "CHANGELOG.md", *(REPO / "docs").glob("*.md")])
LINKING = [*WRITTEN, REPO / "ARCHITECTURE.md", REPO / "CONTRIBUTING.md"]

#: Flags that are not of a vmm command: of Dockerfile instructions and of scripts.
FOREIGN_FLAGS = {
    "--chmod", "--chown", "--from", "--link", "--parents", "--exclude", "--mount", "--check",
}  # fmt: skip
VARIABLES = {f"VMM_{f.name.upper()}" for f in fields(Settings) if f.name != "sources"} | {
    "VMM_CONFIG",
    "VMM_DEBUG",
    "VMM_ACCEL",
    "VMM_WRITE_TABLE",
}
_FENCE = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"|", "||", "&&", ";", "&", ">", "<", ">>", "2>"}


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return _FENCE.findall(path.read_text())


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text())


def command_lines(path: Path) -> list[list[str]]:
    """The words after ``vmm`` of every command line shown to be typed."""
    found = []
    for language, text in blocks(path):
        if language not in {"sh", "console"}:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            typed = line.removeprefix("# ") if language == "console" else line
            if language == "console" and typed == line:
                continue  # output
            found += _calls(typed)
    found += [call for line in _examples(path) for call in _calls(line)]
    return found


def _examples(path: Path) -> list[str]:
    """The examples of the help texts in docs/cli.md."""
    texts = [text for language, text in blocks(path) if language == "text"]
    tails = [text.partition("\nExamples:\n")[2] for text in texts]
    return [line.strip() for tail in tails for line in tail.splitlines()]


def _calls(line: str) -> list[list[str]]:
    """Every call of vmm in a line of shell, those in substitutions too."""
    inner = re.findall(r"[$<]\((vmm [^)]*)\)", line)
    outer = re.sub(r"[$<]\([^)]*\)", "SUBSTITUTED", line)
    calls: list[list[str]] = []
    for text in [*inner, outer]:
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        call: list[str] | None = None
        for word in [*lexer, ";"]:
            if word in _SEPARATORS:
                calls += [call] if call is not None else []
                call = None
            elif call is not None:
                call.append(word)
            elif word == "vmm":
                call = []
    return calls


@cache
def command(words: tuple[str, ...]) -> Any:
    entry = table.find(list(words))
    return None if entry is None else app.load(entry)


def parse(words: list[str]) -> None:
    """Let the real parser take a command line; VmmError if it refuses it."""
    while words[:1] == ["--root"]:
        words = words[2:]
    if words in ([], ["--help"], ["--version"]):
        return
    size = 2 if words[0] in table.GROUPS else 1
    found = command(tuple(words[:size]))
    assert found is not None, f"no such command: vmm {' '.join(words[:size])}"
    if words[0] not in table.GROUPS or len(words) > 1:
        context = typer.Context(found, info_name=" ".join(["vmm", *words[:size]]))
        found.parse_args(context, words[size:])


def every_line() -> list[Any]:
    return [
        pytest.param(words, id=f"{name(path)}: vmm {' '.join(words)}"[:90])
        for path in WRITTEN
        for words in command_lines(path)
    ]


@pytest.mark.parametrize("words", every_line())
def test_a_command_line_shown_is_accepted(words: list[str]) -> None:
    try:
        parse(words)
    except VmmError as error:
        pytest.fail(f"vmm {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "words",
    [["nosuch"], ["system", "nosuch"], ["ps", "--nosuch"], ["rm"], ["run", "--name"]],
)
def test_a_wrong_command_line_would_be_found(words: list[str]) -> None:
    with pytest.raises((AssertionError, VmmError)):
        parse(words)


def test_command_lines_are_found_in_shell() -> None:
    line = "A=1 vmm rmi -f $(vmm images -q) | cat; vmm ps"
    assert _calls(line) == [["images", "-q"], ["rmi", "-f", "SUBSTITUTED"], ["ps"]]
    assert len(command_lines(REPO / "README.md")) > 50
    assert len(command_lines(REPO / "docs/cli.md")) > 50


def known_flags() -> set[str]:
    flags = {"--help", "--root", "--version"} | FOREIGN_FLAGS
    for _, entry in table.everything():
        for param in app.load(entry).params:
            flags |= {*param.opts, *param.secondary_opts}
    return flags


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_commands_and_flags_named_in_the_text_exist(path: Path) -> None:
    flags = known_flags()
    refusable = {flag for of in refused.FLAGS.values() for flag in of}
    for span in re.findall(r"`([^`\n]+)`", prose(path)):
        words = span.split()
        if words[0] == "vmm" and len(words) > 1 and words[1] not in {"COMMAND", "…"}:
            size = 2 if words[1] in table.GROUPS else 1
            assert len(words) == 2 or table.find(words[1 : size + 1]), f"no such command: {span}"
            known = words[1] in table.GROUPS or words[1] in table.TOP or words[1].startswith("-")
            assert known, f"no such command: {span}"
        for word in words:
            flag = word.partition("=")[0]
            if re.fullmatch(r"--[a-z][a-z-]*[a-z]", flag) and not span.startswith("nft"):
                assert flag in flags | refusable, f"no such flag: {span}"


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_variables_and_targets_exist(path: Path) -> None:
    text = path.read_text()
    variables = {v for v in re.findall(r"\bVMM_[A-Z_]+\b", text) if not v.endswith("_")}
    assert variables <= VARIABLES
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    typed = {t for _, block in blocks(path) for t in re.findall(r"\bmake ([a-z-]+)", block)}
    assert typed <= targets


def test_every_command_is_in_the_reference() -> None:
    text = (REPO / "docs/cli.md").read_text()
    for words, entry in table.everything():
        assert entry.hidden or f"\n## vmm {words}\n" in text, words


def test_every_command_refused_is_really_missing() -> None:
    assert not set(refused.COMMANDS) & (set(table.TOP) | set(table.GROUPS))


def test_the_reference_is_current() -> None:
    made = runpy.run_path(str(REPO / "docs/generate.py"))["render"]()
    assert (REPO / "docs/cli.md").read_text() == made, "run python docs/generate.py"


def test_every_setting_is_documented() -> None:
    shown = re.findall(r"^\| `([a-z_]+)` \|", (REPO / "docs/settings.md").read_text(), re.MULTILINE)
    assert shown == [f.name for f in fields(Settings) if f.name != "sources"]


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    kept = (re.sub(r"[^\w -]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", LINKING, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(REPO) and target.exists(), link
        assert not anchor or anchor in anchors(target), link
