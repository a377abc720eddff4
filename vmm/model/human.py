"""Sizes and times as people read them, in Docker's wording (github.com/docker/go-units)."""

from __future__ import annotations

import time

_SECOND = 10**9


def size(number: float, precision: int = 3) -> str:
    """``1.24kB``, ``117MB``: powers of 1000, significant digits."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    position = 0
    while number >= 1000 and position < len(units) - 1:
        number /= 1000
        position += 1
    return f"{number:.{precision}g}{units[position]}"


def binary_size(number: float, precision: int = 4) -> str:
    """``1.5KiB``, ``7.638GiB``: powers of 1024, significant digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    position = 0
    while number >= 1024 and position < len(units) - 1:
        number /= 1024
        position += 1
    return f"{number:.{precision}g}{units[position]}"


def duration(nanoseconds: int) -> str:
    """``About a minute``, ``3 hours``."""
    seconds = max(0, nanoseconds // _SECOND)
    minutes, hours = seconds // 60, (seconds + 1800) // 3600
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for unit, length, limit in (("days", 24, 336), ("weeks", 168, 1440), ("months", 720, 17520)):
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{hours // 8760} years"


def go_duration(nanoseconds: int) -> str:
    """``1m30s``, ``1.5s``, ``500ms``, ``0s``: as Go's time.Duration prints itself."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    if 0 < nanoseconds < _SECOND:
        unit, size = next(u for u in (("ms", 10**6), ("µs", 10**3), ("ns", 1)) if rest >= u[1])
        whole, rest = divmod(rest, size)
        return f"{whole}{_fraction(rest, len(str(size)) - 1)}{unit}"
    minutes, hours = seconds // 60, seconds // 3600
    text = f"{seconds % 60}{_fraction(rest, 9)}s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    return f"{hours}h{text}" if hours else text


def _fraction(rest: int, digits: int) -> str:
    return f".{rest:0{digits}d}".rstrip("0") if rest else ""


def ago(then: int, now: int) -> str:
    """``5 minutes ago``; "N/A" for never (0)."""
    return f"{duration(now - then)} ago" if then else "N/A"


def rfc3339(nanoseconds: int) -> str:
    """UTC with nanoseconds; Go's zero time for never (0)."""
    if not nanoseconds:
        return "0001-01-01T00:00:00Z"
    seconds, fraction = divmod(nanoseconds, _SECOND)
    base = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{base}{digits}Z"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds of an image document's time; 0 when it is absent or malformed."""
    from vmm.model.errors import UsageError
    from vmm.model.options import timestamp

    if not text or text.startswith("0001-"):
        return 0
    try:
        return timestamp(text, 0)
    except UsageError:
        return 0


def local(nanoseconds: int) -> str:
    """``2026-01-31 12:00:00 +0000 UTC``, in the caller's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(nanoseconds // _SECOND))
