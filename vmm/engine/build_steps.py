"""The instructions of a Dockerfile, carried out in order, each from the cache or anew."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from vmm.dockerfile import Program, Stage, commands
from vmm.dockerfile.stages import refuse_remote
from vmm.dockerfile.words import WordError, expand
from vmm.engine import build_copy, build_events
from vmm.engine.build_args import BuildArgs
from vmm.engine.build_cache import BuildCache, Entry, key_of
from vmm.engine.build_ports import Workbench
from vmm.engine.build_source import SourceTree
from vmm.engine.build_state import (
    State,
    Words,
    apply,
    from_image,
    nop,
    with_path,
    working_directory,
)
from vmm.engine.build_tree import Owner, canonical, make_directories
from vmm.engine.users import read_inside
from vmm.model.backend import RootLayout
from vmm.model.errors import BuildError, NoSpace, VmmError
from vmm.model.ids import new_id
from vmm.model.image import Layer
from vmm.model.request import BuildRequest
from vmm.ports.space import is_full
from vmm.storage.tree import remove_tree


class BuildRun:
    """One build in progress."""

    def __init__(
        self,
        builder: Workbench,
        request: BuildRequest,
        program: Program,
        context: SourceTree,
        directory: Path,
    ) -> None:
        self._builder = builder
        self._layers = builder.layers
        self._emit = builder.progress
        self._request = request
        self._program = program
        self._context = context
        self._directory = directory
        self._cache = BuildCache(builder.root / "build-cache", enabled=not request.no_cache)
        self._args = BuildArgs(request.build_args, builder.environ)
        self._stages: list[tuple[str, State]] = []
        self._state = State(architecture=builder.architecture)
        self._step = 0

    def run(self) -> State:
        for argument in self._program.arguments:
            with self._instruction(argument):
                self._global_argument(argument)
        for stage in self._program.stages:
            self._run_stage(stage)
        if unused := self._args.unused():
            text = f"One or more build-args [{' '.join(unused)}] were not consumed"
            self._emit(build_events.Warned(text))
        return self._state

    @contextlib.contextmanager
    def _instruction(self, command: commands.Command) -> Iterator[None]:
        """Announce a step; errors get its line."""
        self._step += 1
        self._emit(build_events.StepStarted(self._step, self._program.steps, command.text))
        place = f"{self._program.name}, line {command.line}"
        keyword = command.text.split(None, 1)[0].upper()
        try:
            yield
        except (BuildError, NoSpace):
            raise
        except VmmError as error:
            message = f"{place}: {keyword} failed: {error.message}"
            raise BuildError(message, line=command.line, hint=error.hint) from error
        except OSError as error:
            if is_full(error):
                raise
            message = f"{place}: {keyword} failed: {error.strerror}: {error.filename or ''}"
            raise BuildError(message.rstrip(": "), line=command.line) from error
        except ValueError as error:
            # Words, patterns, and names that the system takes for none (a NUL in them).
            raise BuildError(f"{place}: {keyword} failed: {error}", line=command.line) from error

    def _global_argument(self, argument: commands.Arg) -> None:
        for name, default in argument.items:
            value = None if default is None else self._expand_global(default)
            self._args.declare_global(name, value)

    def _expand_global(self, word: str) -> str:
        return expand(word, self._args.globals(), self._program.escape)

    # Stages

    def _run_stage(self, stage: Stage) -> None:
        self._args.start_stage()
        with self._instruction(stage.base):
            self._state = self._base(self._expand_global(stage.base.image), stage.base.image)
            self._emit(build_events.StepDone(self._state.image_id))
        # Named before its commands run, so that a later stage finds it; not for itself.
        for command in stage.commands:
            with self._instruction(command):
                self._dispatch(command)
                self._emit(build_events.StepDone(self._state.image_id))
        self._stages.append((stage.base.alias, self._state))

    def _base(self, name: str, written: str) -> State:
        if not name:
            raise WordError(f"base name ({written}) should not be blank")
        for alias, state in self._stages:
            if alias and alias == name.lower():
                return state.continued()
        if name == "scratch":
            state = State(architecture=self._builder.architecture)
            state.config = with_path(state.config)
            return state
        image = self._builder.images.resolve(name)
        if image.config.config.on_build:
            raise BuildError(
                f"image {name} has ONBUILD triggers, which are not supported",
                hint="build from its own base image",
            )
        return from_image(image, [self._layers.layer(chain) for chain in image.chain_ids])

    # Instructions

    def _dispatch(self, command: commands.Command) -> None:
        state = self._state
        words = Words(state.config.env, self._args.visible(state.config.env), self._program.escape)
        match command:
            case commands.Run():
                self._run(command)
            case commands.Copy():
                self._copy(command, words)
            case commands.Workdir(path=path):
                self._workdir(words.one(path))
            case _:
                before = self._fingerprint()
                text = nop(state, apply(state, command, words, self._args))
                self._settle(key_of("nop", before, text), text, lambda _: None)

    def _fingerprint(self) -> list[Any]:
        """All of the state that a command's outcome may depend on."""
        state = self._state
        return [state.architecture, state.chain, msgspec.to_builtins(state.config), state.author]

    def _settle(self, key: str, created_by: str, make: Callable[[Path], Layer | None]) -> None:
        """Take the outcome from the cache, or ``make`` it in a directory of its own."""
        entry = self._cache.get(key)
        if entry and (entry.layer is None or self._layers.has(entry.layer.chain_id)):
            self._emit(build_events.CacheUsed())
        else:
            directory = self._directory / str(self._step)
            directory.mkdir(mode=0o700)
            layer = make(directory)
            remove_tree(os.fspath(directory))
            entry = Entry(created=_now(), layer=layer)
            self._cache.put(key, entry)
        self._state.record(entry.created, created_by, entry.layer)

    def _adopt(self, layout: RootLayout) -> Layer | None:
        sink = self._builder.images.blobs
        return self._layers.adopt(layout.upper, self._state.chain, sink)

    def _run(self, command: commands.Run) -> None:
        state = self._state
        argv = command.args if command.exec_form else (*state.shell, *command.args)
        recorded = self._args.recorded(state.config.env)
        counted = [f"|{len(recorded)}", *recorded] if recorded else []
        created_by = " ".join([*counted, *argv])

        def make(directory: Path) -> Layer | None:
            layout = self._layers.prepare(state.chain_ids, directory)
            self._execute(command, layout, argv, directory)
            return self._adopt(layout)

        self._settle(key_of("run", self._fingerprint(), argv, recorded), created_by, make)

    def _execute(
        self, command: commands.Run, layout: RootLayout, argv: tuple[str, ...], directory: Path
    ) -> None:
        state = self._state
        visible = self._args.visible(state.config.env)
        identity = new_id()
        self._emit(build_events.ContainerStarted(identity))
        code = self._builder.run(
            layout,
            state.config,
            argv,
            (*state.config.env, *(f"{name}={value}" for name, value in sorted(visible.items()))),
            identity=identity,
            network=self._request.network,
            volumes=self._volumes(layout, directory),
            output=lambda data: self._emit(build_events.Output(data)),
        )
        if code:
            raise BuildError(
                f"The command '{' '.join(argv)}' returned a non-zero code: {code}",
                line=command.line,
                code=code,
                hint=f"{self._program.name}, line {command.line}: {command.text:.500}",
            )
        self._emit(build_events.ContainerRemoved(identity))

    def _volumes(self, layout: RootLayout, directory: Path) -> dict[str, str]:
        """What RUN writes to a VOLUME is not part of the image: each is a copy, thrown away."""
        if not self._state.config.volumes:
            return {}
        volumes = {}
        with _closing(self._layers.view(layout)) as view:
            for index, target in enumerate(sorted(self._state.config.volumes)):
                volume = directory / f"volume{index}"
                volume.mkdir()
                build_copy.copy_tree(view, target, os.fspath(volume))
                volumes[target] = os.fspath(volume)
        return volumes

    def _workdir(self, path: str) -> None:
        if not path:
            raise WordError("WORKDIR requires a path")
        state = self._state
        path = working_directory(state, path)
        text = nop(state, f"WORKDIR {path}")

        def make(directory: Path) -> Layer | None:
            with self._writable(directory) as (layout, root):
                os.close(make_directories(root, canonical(root, path)))
            return self._adopt(layout)

        self._settle(key_of("workdir", state.chain, path), text, make)
        state.set(working_dir=path)

    # COPY and ADD

    def _copy(self, command: commands.Copy, words: Words) -> None:
        wanted = [words.one(source) for source in command.sources]
        if command.extract:
            refuse_remote(tuple(wanted))
        destination = words.one(command.destination)
        destination = build_copy.absolute(destination, self._state.config.working_dir)
        with self._origin(command) as tree:
            transfer = build_copy.Transfer(
                tree=tree,
                sources=build_copy.select(tree, command, wanted, destination),
                destination=destination,
                extract=command.extract,
                owner=self._owner(words.one(command.chown)),
                mode=build_copy.mode_of(words.one(command.chmod)),
            )
            self._transfer(command, transfer)

    def _transfer(self, command: commands.Copy, transfer: build_copy.Transfer) -> None:
        state = self._state
        digest = build_copy.summary(transfer.tree, transfer.sources)
        names = [os.fsencode(source.name).hex() for source in transfer.sources]
        owner = transfer.owner and [transfer.owner.uid, transfer.owner.gid]
        details = [digest, names, transfer.destination, owner, transfer.mode]
        key = key_of(command.keyword, transfer.tree.owned, state.chain, details)
        text = f"#(nop) {command.keyword} {digest} in {transfer.destination} "

        def make(directory: Path) -> Layer | None:
            with self._writable(directory) as (layout, root):
                build_copy.carry_out(transfer, root)
            if build_copy.summary(transfer.tree, transfer.sources) != digest:
                raise VmmError(
                    "the source files changed while they were copied", "repeat the build"
                )
            return self._adopt(layout)

        self._settle(key, " ".join([*state.shell, text]), make)

    @contextlib.contextmanager
    def _origin(self, command: commands.Copy) -> Iterator[SourceTree]:
        if not command.origin:
            yield self._context
            return
        chains = self._origin_chains(command.origin)
        directory = self._directory / f"{self._step}-from"
        directory.mkdir(mode=0o700)
        try:
            tree = SourceTree(self._layers.view(self._bare(chains, directory)), owned=True)
            with contextlib.closing(tree):
                yield tree
        finally:
            remove_tree(os.fspath(directory))

    def _origin_chains(self, origin: str) -> list[str]:
        for alias, state in self._stages:
            if alias and alias == origin.lower():
                return state.chain_ids
        if origin.isascii() and origin.isdigit() and len(origin) < 6:
            if int(origin) >= len(self._stages):
                raise VmmError(
                    f"invalid from flag value {origin}: there is no such stage before this one",
                    "stages count from 0",
                )
            return self._stages[int(origin)][1].chain_ids
        return list(self._builder.images.resolve(origin).chain_ids)

    def _owner(self, text: str) -> Owner | None:
        if not text:
            return None
        return build_copy.owner_of(text, self._read_image_file)

    def _read_image_file(self, path: str) -> str:
        directory = self._directory / f"{self._step}-{os.urandom(4).hex()}"
        directory.mkdir(mode=0o700)
        try:
            layout = self._bare(self._state.chain_ids, directory)
            with _closing(self._layers.view(layout)) as view:
                return read_inside(view, path)
        finally:
            remove_tree(os.fspath(directory))

    def _bare(self, chain_ids: list[str], directory: Path) -> RootLayout:
        """A layout with the image's own layers, without the mount points a container gets
        (the topmost lower of prepare())."""
        layout = self._layers.prepare(chain_ids, directory)
        if not chain_ids:
            return RootLayout(driver="directory", path=layout.upper, upper=layout.upper)
        return msgspec.structs.replace(layout, lowers=layout.lowers[1:])

    @contextlib.contextmanager
    def _writable(self, directory: Path) -> Iterator[tuple[RootLayout, int]]:
        layout = self._bare(self._state.chain_ids, directory)
        with _closing(self._layers.writable_view(layout)) as root:
            yield layout, root


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _now() -> str:
    """RFC 3339, as image documents have it."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
