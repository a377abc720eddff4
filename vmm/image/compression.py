"""Compressed streams, recognised by their first bytes and read in bounded pieces."""

from __future__ import annotations

import contextlib
import io
from typing import IO, Any

from vmm.model.errors import HostError, InvalidDocument

_CHUNK = 1 << 20
_XZ_MEMORY = 256 << 20


def kind_of(start: bytes) -> str:
    """``gzip``, ``bzip2``, ``xz``, ``zstd`` or "" by magic number."""
    for magic, kind in (
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ):
        if start.startswith(magic):
            return kind
    return ""


def decompressed(stream: IO[bytes]) -> IO[bytes]:
    """``stream`` without its compression, if it has one; close what is returned, not ``stream``."""
    source = io.BufferedReader(_Raw(stream), _CHUNK)
    kind = kind_of(source.peek(8)[:8])
    if not kind:
        return source
    if kind == "zstd":
        return _zstd(source)
    return io.BufferedReader(_Decompressor(source, kind), _CHUNK)


class _Raw(io.RawIOBase):
    """Any object with read() as a raw stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Decompressor(io.RawIOBase):
    """One or more members of a compressed file; what follows the last one is ignored."""

    def __init__(self, source: IO[bytes], kind: str) -> None:
        self._source = source
        self._kind = kind
        self._member = _new(kind)
        self._pending = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ended:
            try:
                data = self._some(len(buffer))
            except (OSError, EOFError, ValueError, _lzma_error(), _zlib_error()) as error:
                raise InvalidDocument("archive", [f"damaged {self._kind} data: {error}"]) from None
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _some(self, size: int) -> bytes:
        if self._member.eof:
            return self._next_member()
        if not self._pending and getattr(self._member, "needs_input", True):
            self._pending = self._source.read(_CHUNK)
            if not self._pending:
                raise EOFError("it is cut off")
        data: bytes = self._member.decompress(self._pending, size)
        # zlib gives back what it did not consume, bz2 and lzma keep it.
        self._pending = getattr(self._member, "unconsumed_tail", b"")
        return data

    def _next_member(self) -> bytes:
        rest = self._member.unused_data or self._source.read(_CHUNK)
        if kind_of(rest.lstrip(b"\0")[:8]) != self._kind:
            self._ended = True
            return b""
        self._member = _new(self._kind)
        self._pending = rest.lstrip(b"\0")
        return b""


def _new(kind: str) -> Any:
    if kind == "gzip":
        import zlib

        return zlib.decompressobj(wbits=31)
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _lzma_error() -> type[Exception]:
    import lzma

    return lzma.LZMAError


def _zlib_error() -> type[Exception]:
    import zlib

    return zlib.error


class _Program(io.RawIOBase):
    """The output of a filter program fed from a stream."""

    def __init__(self, argv: list[str], source: IO[bytes]) -> None:
        import subprocess
        import threading

        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise HostError(
                f"the archive is compressed with {argv[0]}, and there is no such program",
                f"install it (Debian: apt-get install {argv[0]})",
            ) from None
        self._feeder = threading.Thread(target=self._feed, args=(source,), daemon=True)
        self._feeder.start()

    def _feed(self, source: IO[bytes]) -> None:
        assert self._process.stdin is not None
        try:
            while data := source.read(_CHUNK):
                self._process.stdin.write(data)
        except (BrokenPipeError, ValueError):
            return  # the reader has gone, or the program failed and says why
        finally:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        assert self._process.stdout is not None
        size: int = self._process.stdout.readinto(buffer)  # type: ignore[attr-defined]
        if not size and self._process.wait():
            assert self._process.stderr is not None
            said = self._process.stderr.read(400).decode(errors="replace").strip()
            raise InvalidDocument("archive", [f"damaged zstd data: {said}"])
        return size

    def close(self) -> None:
        if not self.closed:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()
        super().close()


def _zstd(source: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_Program(["zstd", "-dc", "-q", "--memory=256MB"], source), _CHUNK)
