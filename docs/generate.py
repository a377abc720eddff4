"""Write docs/cli.md, the reference of every command, from the command tree itself.

With ``--check`` nothing is written; the exit code is 1 when the file is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vmm.cli import app, refused, table
from vmm.cli.table import Entry

TARGET = Path(__file__).parent / "cli.md"

INTRODUCTION = """\
# Commands

Written by `docs/generate.py` from the command tree; `vmm COMMAND --help` prints the same text.

Names, flags and output are those of Docker's command line. A CONTAINER is a workload, named
by its full ID, its name, or a prefix of its ID that only it has. Flags may stand before or after
arguments; for `vmm run`, `vmm create` and `vmm exec`, all that follows the first argument (IMAGE or
CONTAINER) belongs to the workload. `-itd` is `-i -t -d`. A boolean flag may have a value:
`--rm=false`.

`--root DIR` stands before the command and chooses the instance; so does the variable `VMM_ROOT`.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | the command failed; one line says what, the next what to do |
| 125 | a wrong flag, value or command; or vmm itself failed in `vmm run` or `vmm create` |
| 126 | the command of the workload cannot be executed |
| 127 | the command of the workload was not found |
| 130 | interrupted |
| 128+n | the workload ended by signal n: 137 is KILL, 143 is TERM |

`vmm run`, `vmm start -a`, `vmm attach` and `vmm exec` end with the exit code of the process they
ran. `vmm build` ends with the exit code of the RUN that failed. A command over several objects goes
on after a failure and ends with 1. `vmm system check` ends with 1 when it found faults.
"""

REFUSED = """\
## What Docker has and vmm refuses

A command or flag of Docker's that vmm does not have is refused by name, with exit code 125.
"""


def render() -> str:
    """The whole document."""
    parts = [INTRODUCTION, _contents()]
    parts += [_command([name], entry) for name, entry in _shown(table.TOP)]
    for group, (about, members) in table.GROUPS.items():
        parts.append(f"## vmm {group}\n\n{about}.\n")
        parts += [_member(group, name, entry) for name, entry in _shown(members)]
    parts += [REFUSED, _refused_commands(), _refused_flags()]
    return "\n".join(parts)


def _shown(entries: dict[str, Entry]) -> list[tuple[str, Entry]]:
    return [(name, entry) for name, entry in sorted(entries.items()) if not entry.hidden]


def _link(words: str) -> str:
    return f"[`{words}`](#{words.replace(' ', '-')})"


def _contents() -> str:
    lines = ["## All commands\n", "| command | |", "|---|---|"]
    for name, entry in _shown(table.TOP):
        lines.append(f"| {_link(f'vmm {name}')} | {entry.summary} |")
    for group, (_, members) in table.GROUPS.items():
        for name, entry in _shown(members):
            lines.append(f"| {_link(f'vmm {group} {name}')} | {entry.summary} |")
    return "\n".join(lines) + "\n"


def _member(group: str, name: str, entry: Entry) -> str:
    """A command of a group; one that is a top-level command too refers to it."""
    for same, top in table.TOP.items():
        if top.target == entry.target:
            return f"## vmm {group} {name}\n\nThe same as {_link(f'vmm {same}')}.\n"
    return _command([group, name], entry)


def _command(words: list[str], entry: Entry) -> str:
    path = " ".join(["vmm", *words])
    return f"## {path}\n\n```text\n{help_of(words, entry)}```\n"


def help_of(words: list[str], entry: Entry) -> str:
    """What ``--help`` prints."""
    import typer

    parent = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)), None, "vmm")
    for word in words[:-1]:
        parent = typer.Context(parent.command, parent, word)
    command: Any = app.load(entry)
    context = typer.Context(command, parent, words[-1])
    return str(command.get_help(context)).rstrip() + "\n"


def _refused_commands() -> str:
    rows = [f"| `{name}` | {why} |" for name, why in sorted(refused.COMMANDS.items())]
    return "\n".join(["| command | instead |", "|---|---|", *rows]) + "\n"


def _refused_flags() -> str:
    rows = []
    for command, flags in refused.FLAGS.items():
        if command == "create":
            continue
        name = "run, create" if command == "run" else command
        by_reason: dict[str, list[str]] = {}
        for flag, why in sorted(flags.items()):
            by_reason.setdefault(why, []).append(f"`{flag}`")
        rows += [f"| {name} | {' '.join(same)} | {why} |" for why, same in by_reason.items()]
    return "\n".join(["| of | flags | why |", "|---|---|---|", *rows]) + "\n"


def main(arguments: list[str]) -> int:
    text = render()
    if arguments == ["--check"]:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print("docs/cli.md is not current: run python docs/generate.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
