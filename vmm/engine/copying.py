"""``cp``: files and trees between the host and a workload, by the rules of Docker's ``cp``.

Inside, the copy is made by a process within the workload's root (vmm/engine/archives.py); on
the host, below the directory the user named, following no link of what is copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from vmm.engine.archives import Files, files
from vmm.engine.context import Context
from vmm.model import filestream as fs
from vmm.model.errors import NoSpace, VmmError
from vmm.model.filestream import CopyFailed, Entry, StreamReader, StreamWriter, rebase
from vmm.model.spec import WorkloadSpec
from vmm.ports.space import exhausted, is_full

#: Links that lead to a destination one after the other (path_resolution(7)).
_LINKS = 40
#: Modes that give a program its owner's rights: for that very owner alone.
_SET_ID = 0o6000


class Place(NamedTuple):
    """One side of a copy: an absolute path, and what its last characters ask for."""

    path: str
    #: It ends in ``/`` or ``/.``: it must be a directory.
    directory: bool = False
    #: It ends in ``/.``: the content of the directory and not the directory.
    content: bool = False

    @classmethod
    def of(cls, text: str, absolute: str) -> Place:
        content = posixpath.basename(text) == "." or absolute == "/"
        return cls(absolute, content or text.endswith("/"), content)

    @classmethod
    def inside(cls, text: str) -> Place:
        """A path in a workload, which is relative to its root."""
        return cls.of(text, posixpath.normpath("/" + text.lstrip("/")))

    @classmethod
    def host(cls, text: str) -> Place:
        return cls.of(text, os.path.abspath(text))

    @property
    def name(self) -> str:
        """The name of a copy of it; ``.`` where the content is copied."""
        return "." if self.content else posixpath.basename(self.path)


class Landing(NamedTuple):
    """The directory that takes a copy, and the copy's name there; ``.``: its content."""

    directory: str
    name: str


def landing(source: Place, kind: str, target: Place, there: str) -> Landing:
    """Where a copy goes. ``kind`` and ``there`` are the types of source and target as in file
    streams, "" for a target that is missing. VmmError for what cannot be."""
    if kind != fs.DIRECTORY and source.directory:
        raise VmmError(f"{source.path}: not a directory", "drop the slash at its end")
    if there == fs.DIRECTORY:
        return Landing(target.path, source.name)
    if there and kind == fs.DIRECTORY:
        raise VmmError(
            f"cannot copy directory {source.path} to the file {target.path}",
            "name a directory, or a path that does not exist",
        )
    if there and target.directory:
        raise VmmError(f"{target.path}: not a directory", "drop the slash at its end")
    if not there and target.directory and kind != fs.DIRECTORY:
        raise VmmError(f"no such directory: {target.path}", "make it first")
    return Landing(posixpath.dirname(target.path), posixpath.basename(target.path))


class _Change:
    """Gives the entries their place, and their owner unless it stays; counts bytes."""

    def __init__(self, top: str, own: Callable[[Entry], Entry]) -> None:
        self._top = top
        self._own = own
        self.size = 0

    def __call__(self, entry: Entry) -> Entry:
        self.size += entry.size
        return rebase(self._own(entry), self._top)


def _roots(entry: Entry) -> Entry:
    """As root's; what let others have the rights of another owner is taken away."""
    if (entry.uid, entry.gid) == (0, 0):
        return entry
    xattrs = tuple(pair for pair in entry.xattrs if pair[0] != "security.capability")
    return entry._replace(uid=0, gid=0, mode=entry.mode & ~_SET_ID, xattrs=xattrs)


class _Peeked(StreamReader):
    """A stream whose first entry is known before the others are asked for."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        super().__init__(read)
        self._entries = super().__iter__()
        self.first = next(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        yield self.first
        yield from self._entries


def copy_out(
    ctx: Context, reference: str, path: str, target: str, *, archive: bool, follow: bool
) -> int:
    """Copy ``path`` of a workload to the host; bytes of content. Files belong to the caller, with
    ``archive`` to whom they belong inside."""
    source, place = Place.inside(path), Place.host(target)
    with _reading(ctx, reference, source, follow) as reader:
        resolved, there = _host_target(place)
        chosen = landing(source, reader.first.type, resolved, there)
        change = _Change(chosen.name, fs.unchanged)
        with _directory(chosen.directory) as directory:
            from vmm.storage.streamtree import stream_to_tree

            stream_to_tree(reader, directory, owners=archive, change=change)
    return change.size


def copy_in(
    ctx: Context, source: str, reference: str, path: str, *, archive: bool, follow: bool
) -> int:
    """Copy a file or tree of the host to ``path`` in a workload; bytes of content. It belongs to
    root there, with ``archive`` to the same numbers as here."""
    from vmm.storage.treestream import tree_to_stream

    spec, place = _spec(ctx, reference), Place.host(source)
    follow = follow or place.directory
    with _host_errors():
        kind = _kind(os.stat(place.path, follow_symlinks=follow).st_mode)
    with files(ctx, spec) as found:
        resolved, there = _look(found, spec, Place.inside(path))
        chosen = landing(place, kind, resolved, there)
        change = _Change(chosen.name, fs.unchanged if archive else _roots)
        with _writing(ctx, spec, found, chosen.directory) as writer, _host_errors():
            tree_to_stream(place.path, writer, follow=follow, change=change)
    return change.size


def tar_out(ctx: Context, reference: str, path: str, target: IO[bytes], *, follow: bool) -> None:
    """Write ``path`` of a workload as a tar archive, all owners kept."""
    from vmm.storage.streamtar import stream_to_tar

    source = Place.inside(path)
    with _reading(ctx, reference, source, follow) as reader:
        landing(source, reader.first.type, Place("/"), fs.DIRECTORY)
        stream_to_tar(reader, target, _Change(source.name, fs.unchanged))


def tar_in(ctx: Context, source: IO[bytes], reference: str, path: str) -> None:
    """Unpack a tar archive, compressed or not, in the directory ``path`` of a workload."""
    from vmm.image.compression import decompressed
    from vmm.storage.streamtar import tar_to_stream

    spec = _spec(ctx, reference)
    with files(ctx, spec) as found:
        target, there = _look(found, spec, Place.inside(path))
        if there != fs.DIRECTORY:
            if not there:
                raise _missing(path, spec)
            raise VmmError(f'destination "{reference}:{path}" must be a directory')
        with _writing(ctx, spec, found, target.path) as writer:
            tar_to_stream(decompressed(source), writer)


def _spec(ctx: Context, reference: str) -> WorkloadSpec:
    return ctx.store.read(ctx.index.lookup(reference).id)


@contextlib.contextmanager
def _reading(ctx: Context, reference: str, source: Place, follow: bool) -> Iterator[_Peeked]:
    """The stream of a path in a workload; at the block's end it must have ended well."""
    spec = _spec(ctx, reference)
    follow = follow or source.directory
    with files(ctx, spec) as found, found.pipe("get", source.path, follow=follow) as opened:
        try:
            reader = _Peeked(opened.read)
        except CopyFailed as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise _missing(source.path, spec) from None
            raise
        except StopIteration:
            raise VmmError(f"{spec.name} sent nothing of {source.path}") from None
        yield reader
        opened.finish()


def _missing(path: str, spec: WorkloadSpec) -> VmmError:
    return VmmError(
        f"Could not find the file {path} in container {spec.name}", "paths begin at its root"
    )


@contextlib.contextmanager
def _writing(
    ctx: Context, spec: WorkloadSpec, found: Files, directory: str
) -> Iterator[StreamWriter]:
    """A stream into a directory of a workload; all of it is made when the block has ended."""
    try:
        with found.pipe("put", directory) as opened:
            yield StreamWriter(opened.write)
            opened.close()
            opened.finish()
    except VmmError as error:
        said = os.strerror(errno.ENOSPC) in error.message
        if not said or not (full := exhausted(ctx.store.path(spec.id))):
            raise  # a file system of the workload's own, such as a tmpfs, may be full
        raise NoSpace(error.message, str(full)) from None


def _look(found: Files, spec: WorkloadSpec, target: Place) -> tuple[Place, str]:
    """A path of a workload with the links at its end followed, and the type of what is there,
    "" when nothing is."""
    path = target.path
    for _ in range(_LINKS):
        entry = _first(found, path)
        if entry is None or entry.type != fs.SYMLINK:
            return target._replace(path=path), "" if entry is None else entry.type
        path = posixpath.join(posixpath.dirname(path), entry.link).rstrip("/") or "/"
    raise VmmError(f"{target.path} in container {spec.name}: too many links follow each other")


def _first(found: Files, path: str) -> Entry | None:
    with found.pipe("get", path) as opened:
        try:
            return next(iter(StreamReader(opened.read)), None)
        except CopyFailed as error:
            if error.errno == errno.ENOENT:
                return None
            raise


def _host_target(target: Place) -> tuple[Place, str]:
    """The same on the host."""
    with _host_errors():
        path = os.path.realpath(target.path) if os.path.islink(target.path) else target.path
        try:
            return target._replace(path=path), _kind(os.stat(path).st_mode)
        except FileNotFoundError:
            return target._replace(path=path), ""


def _kind(mode: int) -> str:
    """Directory or not is all that matters."""
    return fs.DIRECTORY if stat.S_ISDIR(mode) else fs.FILE


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VmmError(
            f'invalid output path: directory "{path}": {error.strerror}', "make it first"
        ) from None
    try:
        yield directory
    finally:
        os.close(directory)


@contextlib.contextmanager
def _host_errors() -> Iterator[None]:
    """What the host's own files refuse, as an error of the user's."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if is_full(error):
            raise
        raise VmmError(f"{error.filename or 'copy'}: {error.strerror}") from None
