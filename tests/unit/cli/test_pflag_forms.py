"""How Docker's users write flags, made canonical."""

from __future__ import annotations

import pytest

from vmm.cli.flags import Flag, normalise
from vmm.model.errors import UsageError

FLAGS = {
    "--detach": Flag("--detach", True),
    "-d": Flag("--detach", True),
    "-i": Flag("--interactive", True),
    "-t": Flag("--tty", True),
    "--rm": Flag("--rm", True),
    "--sig-proxy": Flag("--sig-proxy", True, "--no-sig-proxy"),
    "--publish": Flag("--publish", False),
    "-p": Flag("--publish", False),
    "--env": Flag("--env", False),
    "-e": Flag("--env", False),
}


@pytest.mark.parametrize(
    ("line", "options", "arguments"),
    [
        ("-itd image", ["--interactive", "--tty", "--detach"], ["image"]),
        ("-p8080:80 image", ["--publish=8080:80"], ["image"]),
        ("-p=8080:80 image", ["--publish=8080:80"], ["image"]),
        ("-p 8080:80 --publish=1:1 image", ["--publish=8080:80", "--publish=1:1"], ["image"]),
        ("-eX=1 -e Y image", ["--env=X=1", "--env=Y"], ["image"]),
        ("-itp 80 image", ["--publish=80", "--interactive", "--tty"], ["image"]),
        ("--rm=false image", [], ["image"]),
        ("--rm --rm=false image", [], ["image"]),
        ("--rm=false --rm image", ["--rm"], ["image"]),
        ("--rm=1 image", ["--rm"], ["image"]),
        ("-it=false image", ["--interactive"], ["image"]),
        ("--sig-proxy=false image", ["--no-sig-proxy"], ["image"]),
        ("--sig-proxy image", ["--sig-proxy"], ["image"]),
        ("--rm image --rm -x --", ["--rm"], ["image", "--rm", "-x", "--"]),
        ("-- --rm", [], ["--rm"]),
        ("-e - -", ["--env=-"], ["-"]),
        ("--env= image", ["--env="], ["image"]),
    ],
)
def test_run_style(line: str, options: list[str], arguments: list[str]) -> None:
    assert normalise(line.split(), FLAGS, stop_at_argument=True) == (options, arguments)


def test_flags_after_arguments_where_the_command_allows_them() -> None:
    parsed = normalise(["a", "--rm", "b", "--", "-d"], FLAGS, stop_at_argument=False)
    assert parsed == (["--rm"], ["a", "b", "-d"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bogus", "unknown flag: --bogus"),
        ("--bogus=1", "unknown flag: --bogus"),
        ("-x", "unknown shorthand flag: 'x' in -x"),
        ("-itx", "unknown shorthand flag: 'x' in -itx"),
        ("--publish", "flag needs an argument: --publish"),
        ("-ip", "flag needs an argument: 'p' in -ip"),
        ("--rm=maybe", 'invalid argument "maybe" for "--rm" flag: strconv.ParseBool: parsing'
         ' "maybe": invalid syntax'),
    ],
)  # fmt: skip
def test_faults(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalise(line.split(), FLAGS, stop_at_argument=True)
    assert caught.value.message == message
