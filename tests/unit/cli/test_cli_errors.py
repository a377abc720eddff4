"""What is refused at the edge: words, hints and exit codes, and nothing touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.cli import refused, table
from vmm.cli.app import load
from vmm.cli.main import main
from vmm.settings import Settings


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "root"
    monkeypatch.setenv("VMM_ROOT", str(root))
    monkeypatch.delenv("VMM_DEBUG", raising=False)
    yield root
    shutil.rmtree(Settings(root=str(root)).run_dir, ignore_errors=True)


def fails(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(line)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zzz", "vmm: 'zzz' is not a vmm command.\n  See 'vmm --help'.\n"),
        ("rum", "vmm: 'rum' is not a vmm command.\n  Did you mean 'vmm rm'? See 'vmm --help'.\n"),
        ("image bogus",
         "vmm: 'bogus' is not a vmm image command.\n  See 'vmm image --help'.\n"),
        ("--bogus", "vmm: unknown flag: --bogus\n  See 'vmm --help'.\n"),
        ("run --bogus x", "vmm: unknown flag: --bogus\n  See 'vmm run --help'.\n"),
        ("run", 'vmm: "vmm run" requires at least 1 argument.\n'
         "  Usage: vmm run [OPTIONS] IMAGE [COMMAND] [ARG...]\n  See 'vmm run --help'.\n"),
        ("tag a", 'vmm: "vmm tag" requires 2 arguments.\n'
         "  Usage: vmm tag [OPTIONS] SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]\n"
         "  See 'vmm tag --help'.\n"),
        ("ps x", 'vmm: "vmm ps" accepts no arguments.\n  Usage: vmm ps [OPTIONS]\n'
         "  See 'vmm ps --help'.\n"),
        ("run -d -a stdout x", "vmm: Conflicting options: -a and -d\n  drop one of the two\n"),
        ("run --rm --restart always x",
         "vmm: Conflicting options: --restart and --rm\n  drop one of the two\n"),
        ("run -d --rm --restart always x",
         "vmm: Conflicting options: --restart and --rm\n  drop one of the two\n"),
        ("run -m lots x", "vmm: invalid argument \"lots\" for \"-m, --memory\" flag: invalid size:"
         " 'lots'\n  use a number and b, k, m, g or t: 512m\n"),
        ("run --env-file /nonexistent x",
         "vmm: --env-file: open /nonexistent: No such file or directory\n"),
        ("run -w rel x", "vmm: invalid argument \"rel\" for \"-w, --workdir\" flag: the working"
         " directory 'rel' is invalid, it needs to be an absolute path\n"),
        ("pull x", "vmm: vmm pull is not supported\n  " + refused.COMMANDS["pull"] + "\n"),
        ("ps --filter x", "vmm: invalid filter 'x'\n  use --filter KEY=VALUE\n"),
        ("completion tcsh", "vmm: no completion for shell 'tcsh'\n  use bash, zsh or fish\n"),
    ],
)  # fmt: skip
def test_usage_errors(
    line: str, message: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(line.split(), capsys) == (125, message)
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("command", "flag"), [(c, f) for c, flags in refused.FLAGS.items() for f in flags]
)
def test_flags_of_dockers_are_refused_by_name(
    command: str, flag: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["container", "ls"] if command == "ls" and flag != "--tree" else [command]
    words = ["image", "ls"] if command == "ls" and flag == "--tree" else words
    code, text = fails([*words, flag, "x"], capsys)
    assert code == 125
    path = " ".join(words)
    why = refused.FLAGS[command][flag]
    assert text == f"vmm: {flag} is not supported by vmm {path}\n  {why}\n"
    assert not fresh.exists()


def test_nothing_is_both_refused_and_supported() -> None:
    for words, entry in table.everything():
        names = {o for p in load(entry).params for o in p.opts}
        if words == "image ls":
            assert not names & set(refused.FLAGS["images"])
        elif words.split()[0] not in {"volume", "network", "meta", "system", "image"}:
            assert not names & set(refused.FLAGS.get(entry.name, ())), words
    assert not set(refused.COMMANDS) & {*table.TOP, *table.GROUPS}


def test_a_terminal_is_needed_for_it(fresh: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmm", "run", "-it", "busybox"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert done.stderr.startswith("vmm: the input device is not a TTY\n")
    assert not fresh.exists()


def test_unknown_objects(capsys: pytest.CaptureFixture[str]) -> None:
    for line, code in (("run nosuch", 125), ("create nosuch", 125), ("history nosuch", 1)):
        assert main(line.split()) == code
        assert "vmm: No such image: nosuch" in capsys.readouterr().err
    for line in ("stop nosuch", "logs nosuch", "exec nosuch true", "meta ls nosuch", "rm nosuch"):
        assert main(line.split()) == 1
        assert "vmm: No such container: nosuch" in capsys.readouterr().err


def test_each_name_is_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "one", "two"]) == 1
    text = capsys.readouterr().err
    assert "No such container: one" in text and "No such container: two" in text


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "a\x1b[31mb"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_no_traceback_for_a_broken_pipe() -> None:
    done = subprocess.run(
        f"{sys.executable} -m vmm run --help | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}


def test_volume_round_trip(capsys: pytest.CaptureFixture[str]) -> None:
    """Real commands over a real store."""
    assert main(["volume", "create", "--label", "a=b", "data"]) == 0
    assert main(["volume", "ls", "--filter", "label=a=b", "-q"]) == 0
    assert main(["inspect", "-f", "{{.Name}} {{.Labels.a}}", "data"]) == 0
    assert main(["volume", "rm", "data"]) == 0
    assert main(["volume", "ls", "-q"]) == 0
    assert capsys.readouterr().out == "data\ndata\ndata b\ndata\n"
