"""COPY and ADD: which files go where, by Docker's rules, and the putting there."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Callable
from typing import IO

import msgspec

from vmm.dockerfile.commands import Copy
from vmm.engine.build_source import Source, SourceError, SourceTree
from vmm.engine.build_tree import (
    Item,
    Owner,
    Writer,
    canonical,
    lstat,
    make_directories,
    open_file,
)
from vmm.model.errors import VmmError
from vmm.storage.tree import open_exactly

_MAX_ID = 2**31 - 1


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A COPY or ADD with everything settled."""

    tree: SourceTree
    sources: tuple[Source, ...]
    #: Absolute; a slash at its end says that it is a directory.
    destination: str
    extract: bool
    owner: Owner | None
    mode: int | None


def select(
    tree: SourceTree, command: Copy, wanted: list[str], destination: str
) -> tuple[Source, ...]:
    """The sources; SourceError where Docker has one."""
    sources = tuple(source for path in wanted for source in tree.select(path))
    if not sources:
        raise SourceError("no source files were specified")
    if len(sources) > 1 and not destination.endswith("/"):
        raise SourceError(
            f"when using {command.keyword} with more than one source file, "
            "the destination must be a directory and end with a /"
        )
    return sources


def absolute(destination: str, working_dir: str) -> str:
    """``destination`` from the root, cleaned as text; a slash at its end stays."""
    cleaned = posixpath.normpath(posixpath.join("/", working_dir, destination)).lstrip("/")
    return f"/{cleaned}/" if cleaned and destination.endswith(("/", "/.")) else f"/{cleaned}"


def summary(tree: SourceTree, sources: tuple[Source, ...]) -> str:
    """The sources' digest as Docker's history shows it: ``file:…``, ``dir:…``, ``multi:…``."""
    parts = [f"{'dir' if s.directory else 'file'}:{tree.digest(s)}" for s in sources]
    if len(parts) == 1:
        return parts[0]
    import hashlib

    names = [posixpath.basename(source.name) for source in sources]
    joined = repr(list(zip(names, parts, strict=True)))
    return "multi:" + hashlib.sha256(joined.encode("utf-8", "surrogateescape")).hexdigest()


def owner_of(text: str, read: Callable[[str], str]) -> Owner:
    """``--chown=user[:group]``; ``read`` gives the image's passwd and group files as text."""
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise SourceError(f"invalid chown string {text!r:.80}: write user or user:group")
    return Owner(_id(user, "etc/passwd", read), _id(group or user, "etc/group", read))


def _id(name: str, path: str, read: Callable[[str], str]) -> int:
    """A name's number; of the name's own number in ``path``, as no name is all digits."""
    if name.isascii() and name.isdigit():
        if len(name) > 10 or int(name) > _MAX_ID:
            raise SourceError(f"{name:.80} is not a user or group number")
        return int(name)
    for line in read(path).splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name and fields[2].isascii() and fields[2].isdigit():
            return int(fields[2])
    raise SourceError(f"no {name!r:.80} in /{path} of the image", "use a number")


def mode_of(text: str) -> int | None:
    """``--chmod``: octal digits; "" keeps each file's own."""
    if not text:
        return None
    if not 0 < len(text) <= 5 or any(digit not in "01234567" for digit in text):
        raise SourceError(f"invalid --chmod {text!r:.80}: write octal digits, as in 0644")
    mode = int(text, 8)
    if mode > 0o7777:
        raise SourceError(f"invalid --chmod {text!r:.80}: at most 7777")
    return mode


def carry_out(transfer: Transfer, root: int) -> None:
    """Put every source into ``root``, a writable view of the image."""
    for source in transfer.sources:
        if source.directory:
            _put_directory(transfer, source, root)
        elif not (transfer.extract and _unpack(transfer, source, root)):
            _put_file(transfer, source, root)


def _new_owner(transfer: Transfer) -> Owner | None:
    """Whose the copied files become; None: they keep their owners (COPY --from)."""
    return transfer.owner or (None if transfer.tree.owned else Owner(0, 0))


def _put_directory(transfer: Transfer, source: Source, root: int) -> None:
    target = canonical(root, transfer.destination)
    base = make_directories(root, target, transfer.owner)
    try:
        writer = Writer(base, _new_owner(transfer), transfer.mode)
        with contextlib.closing(writer):
            for item in transfer.tree.items(source):
                writer.put(item, item.path)
    finally:
        os.close(base)


def _put_file(transfer: Transfer, source: Source, root: int) -> None:
    target = canonical(root, transfer.destination)
    name = posixpath.basename(source.name)
    if transfer.destination.endswith("/") or _is_directory(root, target):
        directory = target
    else:
        directory, _, name = target.rpartition("/")
    base = make_directories(root, directory, transfer.owner)
    try:
        writer = Writer(base, _new_owner(transfer), transfer.mode)
        with contextlib.closing(writer):
            for item in transfer.tree.items(source):
                writer.put(item, name)
    finally:
        os.close(base)


def _is_directory(root: int, path: str) -> bool:
    try:
        return stat.S_ISDIR(lstat(root, path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _unpack(transfer: Transfer, source: Source, root: int) -> bool:
    """Extract a source that is a tar archive, compressed or not; False if it is none."""
    from vmm.image.compression import decompressed
    from vmm.storage.untar import extract

    for item in transfer.tree.items(source):
        if not _is_archive(item):
            return False
        target = canonical(root, transfer.destination)
        base = make_directories(root, target, transfer.owner)
        try:
            with _opened(item) as file, contextlib.closing(decompressed(file)) as stream:
                extract(stream, base)
        finally:
            os.close(base)
    return True


def _opened(item: Item) -> IO[bytes]:
    return open(open_file(item.parent, item.name), "rb")


def _is_archive(item: Item) -> bool:
    from vmm.image.compression import decompressed
    from vmm.storage.tarstream import TarReader

    if not stat.S_ISREG(item.status.st_mode) or not item.status.st_size:
        return False
    try:
        with _opened(item) as file, contextlib.closing(decompressed(file)) as stream:
            return next(iter(TarReader(stream)), None) is not None
    except (VmmError, OSError, EOFError):
        return False


def copy_tree(root: int, path: str, target: str) -> None:
    """Fill the host directory ``target`` (new, empty) from the directory ``path`` of ``root``."""
    from vmm.engine.build_tree import walk

    where = canonical(root, path)
    base = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _is_directory(root, where):
            os.fchmod(base, 0o755)
            return
        source = open_exactly(root, where)
        status = os.fstat(source)
        os.close(source)
        with contextlib.closing(Writer(base, None, None)) as writer:
            for item in walk(root, where):
                writer.put(item, item.path)
        os.fchown(base, status.st_uid, status.st_gid)
        os.fchmod(base, stat.S_IMODE(status.st_mode))
    finally:
        os.close(base)
