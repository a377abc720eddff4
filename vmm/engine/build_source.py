"""Where COPY and ADD take files from: the build context, or the root of another stage."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

import msgspec

from vmm.dockerfile import pattern
from vmm.dockerfile.ignore import MAX_SIZE, Ignore, clean, read_patterns
from vmm.engine.build_tree import Item, canonical, lstat, open_file, walk
from vmm.model.errors import InvalidDocument, UsageError, VmmError
from vmm.storage.tree import open_exactly


class SourceError(VmmError):
    """A source that cannot be copied; the builder adds the instruction and its line."""


class Source(msgspec.Struct, frozen=True):
    """One source settled: ``path`` has no links; ``name`` is how it was asked for."""

    name: str
    path: str
    directory: bool


class SourceTree:
    """A root to copy from. ``ignore`` hides files, ``owned`` keeps their owners."""

    def __init__(self, root: int, ignore: Ignore | None = None, *, owned: bool) -> None:
        self.root = root
        self.owned = owned
        self._ignore = ignore if ignore is not None and ignore.patterns else None

    def close(self) -> None:
        os.close(self.root)

    def select(self, wanted: str) -> list[Source]:
        """The files that ``wanted`` (a path or Go pattern) means; none is a SourceError."""
        relative = wanted.lstrip("/")
        cleaned = clean(relative) if relative else "."
        if not self.owned and (cleaned == ".." or cleaned.startswith("../")):
            raise SourceError(
                f"forbidden path outside the build context: {wanted}",
                "copy the file into the context, or give a directory above as the context",
            )
        if pattern.has_wildcards(cleaned):
            return self._matching(cleaned)
        return [self._one("" if cleaned == "." else cleaned.replace("\\", ""), wanted)]

    def _one(self, path: str, wanted: str) -> Source:
        try:
            found = canonical(self.root, path)
            status = lstat(self.root, found)
        except (FileNotFoundError, NotADirectoryError):
            status = None
        except OSError as error:
            raise SourceError(f"{wanted}: {error.strerror}") from None
        directory = status is not None and stat.S_ISDIR(status.st_mode)
        if status is None or not self._visible(found, directory):
            raise SourceError(
                "file not found in build context or excluded by .dockerignore: "
                f"stat {wanted}: file does not exist"
            )
        return Source(path, found, directory)

    def _visible(self, path: str, directory: bool) -> bool:
        if not path or not self._ignore or not self._ignore.excluded(path):
            return True
        return directory and any(True for _ in self.items(Source(path, path, True)))

    def _matching(self, wanted: str) -> list[Source]:
        try:
            matcher = pattern.Matcher(pattern.tokens(wanted))
        except pattern.BadPattern as error:
            raise SourceError(str(error)) from None
        depth = wanted.count("/")
        found = [
            item.path
            for item in self._walk("", depth)
            if item.path.count("/") == depth and matcher.matches(item.path)
        ]
        return [self._one(path, path) for path in sorted(found, key=lambda path: path.split("/"))]

    def _walk(self, base: str, depth: int = -1) -> Iterator[Item]:
        """``depth``: do not enter directories below so many others (-1: all)."""
        ignore = self._ignore

        def keep(path: str) -> bool:
            return ignore is None or not ignore.excluded(path)

        def descend(path: str) -> bool:
            return ignore is not None and ignore.may_contain(path)

        return walk(self.root, base, keep, descend, depth)

    def items(self, source: Source) -> Iterator[Item]:
        """The files of a source: those below a directory, or the one file (path "")."""
        if source.directory:
            yield from self._walk(source.path)
            return
        directory, _, name = source.path.rpartition("/")
        parent = open_exactly(self.root, directory)
        try:
            yield Item("", name, parent, os.stat(name, dir_fd=parent, follow_symlinks=False))
        finally:
            os.close(parent)

    def digest(self, source: Source) -> str:
        """sha256 over names, types, modes, owners, link targets and content; not times."""
        total = hashlib.sha256()
        for item in self.items(source):
            status = item.status
            owner = [status.st_uid, status.st_gid] if self.owned else [0, 0]
            fields = [item.path, status.st_mode, *owner, _content(item)]
            total.update(repr(fields).encode("utf-8", "surrogateescape") + b"\n")
        return total.hexdigest()


def _content(item: Item) -> str:
    mode = item.status.st_mode
    if stat.S_ISLNK(mode):
        return os.readlink(item.name, dir_fd=item.parent)
    if stat.S_ISREG(mode):
        with open(open_file(item.parent, item.name), "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return str(item.status.st_rdev)


def open_context(path: str, dockerfile: str) -> SourceTree:
    """The build context at ``path``, less what its ignore file names."""
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UsageError(
            f'unable to prepare context: path "{path}" not found', "give a directory"
        ) from None
    except OSError as error:
        raise UsageError(f"unable to prepare context: {path}: {error.strerror}") from None
    try:
        return SourceTree(root, _read_ignore(path, dockerfile), owned=False)
    except BaseException:
        os.close(root)
        raise


def _read_ignore(path: str, dockerfile: str) -> Ignore | None:
    """``<Dockerfile>.dockerignore`` beside the Dockerfile wins over the context's."""
    for name in (f"{dockerfile}.dockerignore", os.path.join(path, ".dockerignore")):
        try:
            text = read_text(name, MAX_SIZE)
        except FileNotFoundError:
            continue
        return Ignore(read_patterns(text), name)
    return None


def read_text(path: str, limit: int) -> str:
    """A regular UTF-8 file of at most ``limit`` bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{path} is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidDocument(path, [f"is larger than {limit} bytes"])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidDocument(path, [f"line {line}: is not UTF-8 text"]) from None
