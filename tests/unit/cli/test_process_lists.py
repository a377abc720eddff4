"""``vmm top``: options and columns of ps(1), from lines of the protocol."""

from __future__ import annotations

import time

import pytest

from vmm.cli.top import table
from vmm.engine import psformat
from vmm.engine.processes import parse_lines
from vmm.engine.psformat import Moment
from vmm.model.errors import UsageError

#: A Tuesday afternoon, local time.
NOW = int(time.mktime((2026, 3, 10, 15, 0, 0, 0, 0, -1)))
BOOT = NOW - 10 * 86400
MINUTE = 60 * 100


def line(**change: object) -> bytes:
    """A line of TOP; by default a shell that began ten minutes before NOW."""
    fields = {
        "pid": 4711, "ppid": 1, "uid": 0, "state": "S", "start": 10 * 86400 * 100 - 10 * MINUTE,
        "cpu": 150 * 100, "rss": 2 << 20, "vsz": 8 << 20, "tty": 0, "nice": 0, "threads": 1,
        "boot": BOOT, "comm": "sh", "args": "sh -c x",
    } | change  # fmt: skip
    return "\t".join(str(value) for value in fields.values()).encode()


def shown(*options: str, lines: list[bytes] | None = None) -> list[list[str]]:
    """Headings and rows."""
    columns = psformat.parse(options)
    moment = Moment(NOW, memory=64 << 20)
    rows = [[c.value(p, moment) for c in columns] for p in parse_lines(lines or [line()])]
    return [[c.title for c in columns], *rows]


@pytest.mark.parametrize("options", [(), ("-ef",), ("-e", "-f"), ("-Af",), ("-efww",)])
def test_default_is_the_full_list(options: tuple[str, ...]) -> None:
    assert shown(*options) == [
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
        ["root", "4711", "1", "25", "14:50", "?", "00:02:30", "sh -c x"],
    ]


@pytest.mark.parametrize("options", [("aux",), ("-aux",), ("auxw",), ("a", "u", "x")])
def test_bsd_user_list(options: tuple[str, ...]) -> None:
    assert shown(*options) == [
        ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"],
        ["root", "4711", "25.0", "3.1", "8192", "2048", "?", "S", "14:50", "2:30", "sh -c x"],
    ]


def test_short_lists() -> None:
    assert shown("-e")[0] == ["PID", "TTY", "TIME", "CMD"]
    assert shown("-e")[1][3] == "sh"
    assert shown("ax")[0] == ["PID", "TTY", "STAT", "TIME", "COMMAND"]


@pytest.mark.parametrize(
    "options",
    [("-o", "pid,user,comm,args"), ("-opid,user,comm,args",), ("-eo", "pid,user,comm,args"),
     ("-o", "pid user", "-o", "comm,args"), ("--format=pid,user,comm,args",),
     ("--format", "pid,user,comm,args"), ("axo", "pid,user,comm,args")],
)  # fmt: skip
def test_named_columns(options: tuple[str, ...]) -> None:
    assert shown(*options) == [
        ["PID", "USER", "COMMAND", "COMMAND"],
        ["4711", "root", "sh", "sh -c x"],
    ]


def test_headings_of_ones_own() -> None:
    assert shown("-o", "pid,args=WHAT, IT RUNS")[0] == ["PID", "WHAT, IT RUNS"]
    assert shown("-o", "pid=")[0] == [""]


@pytest.mark.parametrize(
    ("options", "named"),
    [(("-ef", "--sort=-rss"), "--sort=-rss"), (("-Z",), "-Z"), (("-eZf",), "Z"),
     (("auxf",), "f"), (("-o", "pid,wchan"), "wchan"), (("-o",), "-o"), (("-o", ","), ","),
     (("4711",), "4"), (("-",), "-"), (("--",), "--")],
)  # fmt: skip
def test_unknown_options_are_refused_by_name(options: tuple[str, ...], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        psformat.parse(options)
    assert named in caught.value.message
    assert "pid" in caught.value.hint or "pid" in caught.value.message


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("stime", {"start": 9 * 86400 * 100}, "Mar09"),
        ("stime", {"boot": BOOT - 200 * 86400}, "2025"),
        ("time", {"cpu": (2 * 86400 + 3661) * 100}, "02-01:01:01"),
        ("etime", {}, "10:00"),
        ("etime", {"start": 0}, "10-00:00:00"),
        ("etimes", {}, "600"),
        ("tty", {"tty": 136 << 8 | 3}, "pts/3"),
        ("tty", {"tty": 4 << 8 | 65}, "ttyS1"),
        ("tty", {"tty": 5 << 8 | 1}, "console"),
        ("args", {"args": ""}, "[sh]"),
        ("stat", {"nice": 5, "threads": 3}, "SNl"),
        ("stat", {"nice": -5, "state": "D"}, "D<"),
        ("user", {"uid": 4000000000}, "4000000000"),
        ("uid", {}, "0"),
        ("ni", {"nice": -20}, "-20"),
        ("c", {"cpu": 10**12}, "99"),
        ("c", {"start": 20 * 86400 * 100}, "0"),
        ("%mem", {"rss": 1 << 62}, "99.9"),
        ("lstart", {}, "Tue Mar 10 14:50:00 2026"),
        ("stime", {"boot": 10**19}, "1970"),
    ],
)
def test_columns(column: str, change: dict[str, object], expected: str) -> None:
    assert shown("-o", column, lines=[line(**change)])[1] == [expected]


def test_a_lying_guest_shows_no_more_than_text() -> None:
    bad = [
        b"", b"\t" * 13, line(pid="x"), line(pid=10**30), line(uid="1e5"), line(args="a\tb"),
        b"\xff" * 4000, line(pid="\xb2"),
    ]  # fmt: skip
    good = line(pid=2, args="x").replace(b"x", b"\x1b[31m\xff")
    listed = parse_lines([*bad, line(pid=9), good])
    assert [(p.pid, p.args) for p in listed] == [(2, "?[31m?"), (9, "sh -c x")]


def test_table_is_as_wide_as_dockers() -> None:
    assert table([["PID", "CMD"], ["1", "a" * 30]]) == [
        "PID" + " " * 17 + "CMD" + " " * 30,
        "1" + " " * 19 + "a" * 30 + "   ",
    ]
