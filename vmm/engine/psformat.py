"""The options and columns of ps(1) that ``top`` understands (procps's forms). Pure but for the
host's names of users and the time zone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vmm.model.errors import UsageError

#: Clock ticks in a second, as the lines of TOP count them.
TICKS = 100
_HINT = "known: -e -f -A -a -w, a u x w, -o COLUMN,…; columns: "


class Process(NamedTuple):
    """One line of TOP; sizes in bytes, times in ticks, ``boot`` in UNIX seconds."""

    state: str
    comm: str
    args: str
    pid: int
    ppid: int
    uid: int
    start: int
    cpu: int
    rss: int
    vsz: int
    tty: int
    nice: int
    threads: int
    boot: int


class Moment(NamedTuple):
    """When the list was made (UNIX seconds), and the memory that shares are of (bytes)."""

    now: float
    memory: int = 0


class Column(NamedTuple):
    title: str
    value: Callable[[Process, Moment], str]
    needs_memory: bool = False


def user_name(uid: int) -> str:
    """The host's name of a user, as ps(1) shortens it; the number when it has none."""
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)
    return name if len(name) <= 8 else name[:7] + "+"


def terminal(number: int) -> str:
    """Name of a controlling terminal (proc_pid_stat(5), field 7; kernel's devices.txt)."""
    major, minor = number >> 8 & 0xFFF, (number & 0xFF) | (number >> 12 & 0xFFF00)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    if major == 204 and 64 <= minor < 80:
        return f"ttyAMA{minor - 64}"
    if major == 229:
        return f"hvc{minor}"
    return {(5, 1): "console"}.get((major, minor), "?")


def started(process: Process, moment: Moment) -> str:
    """``14:05`` today, ``Jan31`` this year, else the year."""
    began, now = _local(_began(process)), _local(moment.now)
    if (began.tm_year, began.tm_yday) == (now.tm_year, now.tm_yday):
        return time.strftime("%H:%M", began)
    return time.strftime("%b%d" if began.tm_year == now.tm_year else "%Y", began)


def _began(process: Process) -> float:
    return process.boot + process.start / TICKS


def _local(seconds: float) -> time.struct_time:
    try:
        return time.localtime(seconds)
    except (OverflowError, ValueError, OSError):  # a guest's clock may say anything
        return time.localtime(0)


def _long_start(process: Process, _: Moment) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", _local(_began(process)))


def clock(seconds: int) -> str:
    """``[days-]hours:minutes:seconds``."""
    days, hours = divmod(seconds // 3600, 24)
    text = f"{hours:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days:02}-{text}" if days else text


def _elapsed(process: Process, moment: Moment) -> int:
    return max(0, int(moment.now - _began(process)))


def _elapsed_text(process: Process, moment: Moment) -> str:
    seconds = _elapsed(process, moment)
    text = clock(seconds)
    return text if seconds >= 3600 else text.partition(":")[2]


def _bsd_time(process: Process, _: Moment) -> str:
    seconds = process.cpu // TICKS
    return f"{seconds // 60}:{seconds % 60:02}"


def share(process: Process, moment: Moment) -> float:
    """CPU time used, in percent of the time the process has lived."""
    lived = moment.now - _began(process)
    return process.cpu / TICKS / lived * 100 if lived > 0 else 0.0


def _memory_share(process: Process, moment: Moment) -> str:
    part = process.rss / moment.memory * 100 if moment.memory > 0 else 0.0
    return f"{min(part, 99.9):.1f}"


def _state(process: Process, _: Moment) -> str:
    """With ps(1)'s marks for priority and threads."""
    priority = "<" if process.nice < 0 else "N" if process.nice > 0 else ""
    return f"{process.state}{priority}{'l' if process.threads > 1 else ''}"


def _command(process: Process, _: Moment) -> str:
    return process.args or f"[{process.comm}]"


_COMM = Column("COMMAND", lambda p, _: p.comm)
_ARGS = Column("COMMAND", _command)
_USER = Column("USER", lambda p, _: user_name(p.uid))
_UID = Column("UID", lambda p, _: str(p.uid))
_TTY = Column("TT", lambda p, _: terminal(p.tty))
_TIME = Column("TIME", lambda p, _: clock(p.cpu // TICKS))
_CPU = Column("%CPU", lambda p, m: f"{min(share(p, m), 9999.0):.1f}")
_MEM = Column("%MEM", _memory_share, needs_memory=True)
_RSS = Column("RSS", lambda p, _: str(p.rss // 1024))
_VSZ = Column("VSZ", lambda p, _: str(p.vsz // 1024))
_NICE = Column("NI", lambda p, _: str(p.nice))
_STAT = Column("STAT", _state)
_STATE = Column("S", lambda p, _: p.state)
_START = Column("START", started)

COLUMNS: dict[str, Column] = {
    "pid": Column("PID", lambda p, _: str(p.pid)),
    "ppid": Column("PPID", lambda p, _: str(p.ppid)),
    "user": _USER, "euser": _USER._replace(title="EUSER"), "uname": _USER,
    "uid": _UID, "euid": _UID._replace(title="EUID"),
    "comm": _COMM, "ucmd": _COMM._replace(title="CMD"), "ucomm": _COMM,
    "args": _ARGS, "cmd": _ARGS._replace(title="CMD"), "command": _ARGS,
    "c": Column("C", lambda p, m: str(min(int(share(p, m)), 99))),
    "%cpu": _CPU, "pcpu": _CPU, "%mem": _MEM, "pmem": _MEM,
    "rss": _RSS, "rssize": _RSS, "rsz": _RSS._replace(title="RSZ"),
    "vsz": _VSZ, "vsize": _VSZ,
    "tty": _TTY, "tt": _TTY, "tname": _TTY._replace(title="TTY"),
    "stat": _STAT, "state": _STATE, "s": _STATE,
    "stime": _START._replace(title="STIME"), "start_time": _START, "bsdstart": _START,
    "lstart": Column("STARTED", _long_start),
    "time": _TIME, "cputime": _TIME, "bsdtime": Column("TIME", _bsd_time),
    "etime": Column("ELAPSED", _elapsed_text),
    "etimes": Column("ELAPSED", lambda p, m: str(_elapsed(p, m))),
    "ni": _NICE, "nice": _NICE,
    "nlwp": Column("NLWP", lambda p, _: str(p.threads)),
    "thcount": Column("THCNT", lambda p, _: str(p.threads)),
}  # fmt: skip


def _columns(*names: str, **titles: str) -> tuple[Column, ...]:
    found = ((name, COLUMNS[name]) for name in names)
    return tuple(c._replace(title=titles[n]) if n in titles else c for n, c in found)


FULL = _columns(
    "user", "pid", "ppid", "c", "stime", "tname", "time", "cmd", user="UID"
)  # fmt: skip
SHORT = _columns("pid", "tname", "time", "ucmd")
BSD = _columns("pid", "tname", "stat", "bsdtime", "args")
BSD_USER = _columns(
    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "bsdstart", "bsdtime", "args"
)


class _Asked:
    """What the options said so far."""

    def __init__(self) -> None:
        self.table: tuple[Column, ...] | None = None
        self.named: list[Column] = []


def parse(words: Sequence[str]) -> tuple[Column, ...]:
    """The columns that ps(1) prints with these options; UsageError names one that is not known."""
    asked, rest = _Asked(), iter(words)
    for word in rest:
        if word.startswith("--"):
            _long(word, rest, asked)
        elif word.startswith("-") and word not in ("-", "-aux", "-axu"):
            _letters(word, word[1:], rest, asked, {"f": FULL}, SHORT, "eAadwf")
        else:
            _letters(word, word.lstrip("-"), rest, asked, {"u": BSD_USER}, BSD, "axwug")
    return tuple(asked.named) or asked.table or FULL


def _long(word: str, rest: Iterator[str], asked: _Asked) -> None:
    name, equals, value = word.partition("=")
    if name != "--format":
        raise _unknown(word)
    asked.named += _named(value if equals else _value(word, rest))


def _letters(
    word: str,
    letters: str,
    rest: Iterator[str],
    asked: _Asked,
    tables: dict[str, tuple[Column, ...]],
    plain: tuple[Column, ...],
    known: str,
) -> None:
    """A bundle of one-letter options; ``o`` takes the rest of the word, or the next word."""
    if not letters:
        raise _unknown(word)
    for position, letter in enumerate(letters):
        if letter == "o":
            asked.named += _named(letters[position + 1 :] or _value(word, rest))
            return
        if letter not in known:
            raise _unknown(word if len(letters) == 1 else f"{letter} in {word}")
        if letter in tables:
            asked.table = tables[letter]
        elif asked.table is None or asked.table in (SHORT, BSD):
            asked.table = plain


def _value(word: str, rest: Iterator[str]) -> str:
    try:
        return next(rest)
    except StopIteration:
        raise UsageError(f"ps option {word}: needs a list of columns", f"{word} pid,args") from None


def _named(text: str) -> Iterator[Column]:
    """``pid,user,args``; after ``=`` follows a heading of one's own, commas and all."""
    names, equals, title = text.partition("=")
    chosen = [name for part in names.split(",") for name in part.split()]
    if not chosen:
        raise UsageError(f"ps option -o {text!r:.80}: no columns", _HINT + ", ".join(COLUMNS))
    for position, name in enumerate(chosen):
        column = COLUMNS.get(name.lower())
        if column is None:
            raise UsageError(f"ps column {name!r:.40} is not known", _HINT + ", ".join(COLUMNS))
        last = position == len(chosen) - 1
        yield column._replace(title=title) if equals and last else column


def _unknown(word: str) -> UsageError:
    return UsageError(f"ps option {word:.40} is not supported", _HINT + ", ".join(COLUMNS))
