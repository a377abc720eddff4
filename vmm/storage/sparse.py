"""Maps of sparse files in tar archives (GNU tar manual, "Storing Sparse Files")."""

from __future__ import annotations

from collections.abc import Callable

from vmm.model.errors import InvalidDocument

#: (offset, length) of each stretch of data, in the order of the archive.
Segments = list[tuple[int, int]]
MAX_SEGMENTS = 65536


def sum_of(segments: Segments) -> int:
    """Bytes of data in the map."""
    return sum(length for _, length in segments)


def _fault(text: str) -> InvalidDocument:
    return InvalidDocument("archive", [text])


def _pairs(numbers: list[int]) -> Segments:
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
        raise _fault(f"a sparse file with a wrong map, or with more than {MAX_SEGMENTS} parts")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def gnu_segments(
    header: bytes, more: Callable[[], bytes], number: Callable[[bytes], int]
) -> tuple[int, Segments]:
    """Size and map of an old GNU sparse entry (type ``S``); ``more`` reads the next block."""
    numbers = _gnu_numbers(header[386:482], number)
    extended = header[482]
    while extended:
        block = more()
        numbers += _gnu_numbers(block[:504], number)
        extended = block[504]
        if len(numbers) > 2 * MAX_SEGMENTS:
            break
    return number(header[483:495]), _pairs(numbers)


def _gnu_numbers(fields: bytes, number: Callable[[bytes], int]) -> list[int]:
    found: list[int] = []
    for start in range(0, len(fields), 24):
        if not fields[start]:
            break
        found += (number(fields[start : start + 12]), number(fields[start + 12 : start + 24]))
    return found


def pax_segments(
    records: dict[bytes, bytes], repeated: list[int], stored: int
) -> tuple[int, Segments | None, bool]:
    """Size, map, and whether the map (format 1.0) leads the content, from PAX records."""
    size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
    if size is None:
        return stored, None, False
    if records.get(b"GNU.sparse.major") == b"1":
        return _whole(size), None, True
    if b"GNU.sparse.map" in records:
        repeated = [_whole(part) for part in records[b"GNU.sparse.map"].split(b",") if part]
    return _whole(size), _pairs(repeated), False


def pax_map(block: Callable[[], bytes]) -> Segments:
    """The map of sparse format 1.0: decimal numbers, one a line, padded to whole blocks."""
    numbers: list[int] = []
    rest = b""
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        *lines, rest = (rest + block()).split(b"\n")
        numbers += [_whole(line) for line in lines]
        if numbers and numbers[0] > MAX_SEGMENTS:
            raise _fault(f"a sparse file with more than {MAX_SEGMENTS} parts")
        if not lines:
            raise _fault("a sparse file whose map is no list of numbers")
    return _pairs(numbers[1 : 1 + 2 * numbers[0]])


def _whole(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise _fault(f"{text[:40]!r} is not a whole number")
    return int(text)
