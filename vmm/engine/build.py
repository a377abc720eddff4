"""``vmm build``: a Dockerfile and a context become an image, one layer per changing instruction.

Everything made on the way lies in ``<root>/builds/<random>``, whose ``lock`` is held while
the build lives; finished layers and cache entries outlive a failed build, as in Docker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from vmm.dockerfile import Program, Stage, analyse, commands, parse
from vmm.dockerfile.parser import MAX_SIZE
from vmm.dockerfile.words import WordError
from vmm.engine import build_events
from vmm.engine.build_args import BuildArgs
from vmm.engine.build_ports import Images, Layers, RunStep
from vmm.engine.build_source import open_context, read_text
from vmm.engine.build_state import State, Words, apply, working_directory
from vmm.engine.build_steps import BuildRun
from vmm.model.errors import BuildError, UsageError
from vmm.model.image import ContainerConfig, Image
from vmm.model.request import BuildRequest
from vmm.ports.files import locked
from vmm.storage.tree import remove_tree


class Builder:
    """Builds images into one instance. ``root`` is the instance's; ``environ`` is where
    ``--build-arg NAME`` without a value looks."""

    def __init__(
        self,
        images: Images,
        layers: Layers,
        run: RunStep,
        root: Path,
        progress: build_events.Progress,
        *,
        architecture: str,
        environ: Mapping[str, str],
    ) -> None:
        self.images = images
        self.layers = layers
        self.run = run
        self.root = root
        self.progress = progress
        self.architecture = architecture
        self.environ = environ

    def build(self, request: BuildRequest) -> Image:
        """The finished image, tagged. BuildError names the line of the instruction that failed."""
        tags = [self.images.normalise(tag) for tag in request.tags]
        dockerfile = request.dockerfile or os.path.join(request.context, "Dockerfile")
        program = _with_labels(_read_program(dockerfile), request.labels)
        context = open_context(request.context, dockerfile)
        try:
            with _work_directory(self.root / "builds") as directory:
                state = BuildRun(self, request, program, context, directory).run()
                return self._finish(state, tags)
        finally:
            context.close()

    def _finish(self, state: State, tags: list[str]) -> Image:
        if state.base:
            image = state.base
            for tag in tags:
                self.images.tag(image.id, tag)
        elif not state.history:
            raise BuildError(
                "No image was generated. Is your Dockerfile empty?",
                hint="FROM scratch alone makes none: add an instruction",
            )
        else:
            image = self.images.commit(state.image_config(), state.layers, tags)
        self.progress(build_events.Built(image.id))
        for tag in tags:
            self.progress(build_events.Tagged(self.images.familiar(tag)))
        return image


def _read_program(dockerfile: str) -> Program:
    try:
        text = read_text(dockerfile, MAX_SIZE)
    except FileNotFoundError:
        raise UsageError(
            f"unable to prepare context: Dockerfile {dockerfile} not found",
            "name it with -f FILE",
        ) from None
    return analyse(parse(text, dockerfile))


def _with_labels(program: Program, labels: Mapping[str, str]) -> Program:
    """``--label`` is a LABEL at the end of the last stage."""
    if not labels:
        return program
    text = " ".join(["LABEL", *(f"{name}={value}" for name, value in labels.items())])
    escape = program.escape
    pairs = tuple((name, _literal(value, escape)) for name, value in labels.items())
    last = program.stages[-1]
    label = commands.Label(line=last.base.line, text=text, pairs=pairs)
    stage = Stage(base=last.base, commands=(*last.commands, label))
    return msgspec.structs.replace(program, stages=(*program.stages[:-1], stage))


def _literal(value: str, escape: str) -> str:
    """``value`` such that substitution gives it back."""
    return "".join(escape + char if char in ("$", '"', "'", escape) else char for char in value)


@contextlib.contextmanager
def _work_directory(parent: Path) -> Iterator[Path]:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = parent / os.urandom(16).hex()
    directory.mkdir(mode=0o700)
    try:
        with locked(directory / "lock", timeout=0):
            yield directory
            remove_tree(os.fspath(directory))
    except BaseException:
        remove_tree(os.fspath(directory))
        raise


def apply_changes(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """``config`` after the instructions of ``--change``: those that change no file."""
    if not changes:
        return config
    program = analyse(parse("\n".join(["FROM scratch", *changes]), "--change"))
    if len(program.stages) > 1:
        raise UsageError("--change FROM: is not a valid change")
    state = State(architecture="", config=config)
    args = BuildArgs({}, {})
    for command in program.stages[-1].commands:
        words = Words(state.config.env, {}, program.escape)
        try:
            if isinstance(command, commands.Workdir):
                state.set(working_dir=working_directory(state, words.one(command.path)))
            elif isinstance(command, _UNCHANGEABLE):
                raise WordError("is not a valid change: it changes files or is not of the image")
            else:
                apply(state, command, words, args)
        except WordError as error:
            raise UsageError(f"--change {command.text!r:.200}: {error}") from None
    return state.config


_UNCHANGEABLE = (commands.Run, commands.Copy, commands.Arg, commands.Maintainer, commands.From)
