"""The image as it stands between two instructions, and what the instructions without files do
to it, by Docker's Dockerfile reference."""

from __future__ import annotations

import hashlib
import posixpath
import re

import msgspec

from vmm.dockerfile import commands
from vmm.dockerfile.words import WordError, expand, split
from vmm.engine.build_args import BuildArgs
from vmm.engine.resolve import PATH
from vmm.model import human
from vmm.model.image import (
    ContainerConfig,
    Healthcheck,
    History,
    Image,
    ImageConfig,
    Layer,
    RootFS,
)
from vmm.model.signals import number

DEFAULT_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(?:.*:)?(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?\Z", re.IGNORECASE)


class State(msgspec.Struct, kw_only=True):
    """A stage in progress."""

    architecture: str
    os: str = "linux"
    variant: str = ""
    created: str = ""
    author: str = ""
    config: ContainerConfig = ContainerConfig()
    layers: list[Layer] = []
    history: list[History] = []
    #: CMD was set in this stage, so that ENTRYPOINT does not reset it.
    cmd_set: bool = False
    #: The unchanged base image, until an instruction changes something.
    base: Image | None = None

    def continued(self) -> State:
        """A copy for a stage that begins with this one."""
        return msgspec.structs.replace(
            self, layers=[*self.layers], history=[*self.history], cmd_set=False
        )

    @property
    def chain(self) -> str | None:
        return self.layers[-1].chain_id if self.layers else None

    @property
    def chain_ids(self) -> list[str]:
        return [layer.chain_id for layer in self.layers]

    @property
    def shell(self) -> list[str]:
        return self.config.shell or DEFAULT_SHELL

    def set(self, **changes: object) -> None:
        self.config = msgspec.structs.replace(self.config, **changes)

    def record(self, created: str, created_by: str, layer: Layer | None) -> None:
        """Append an instruction's outcome."""
        self.created = created
        self.base = None
        if layer:
            self.layers.append(layer)
        self.history.append(
            History(
                created=created,
                created_by=created_by,
                author=self.author,
                empty_layer=layer is None,
            )
        )

    def image_config(self) -> ImageConfig:
        return ImageConfig(
            architecture=self.architecture,
            os=self.os,
            variant=self.variant,
            created=self.created,
            author=self.author,
            config=self.config,
            rootfs=RootFS(diff_ids=[layer.diff_id for layer in self.layers]),
            history=self.history,
        )

    @property
    def image_id(self) -> str:
        """The ID an image of this state has; "" for an empty one."""
        if self.base:
            return self.base.id
        if not self.history:
            return ""
        return "sha256:" + hashlib.sha256(msgspec.json.encode(self.image_config())).hexdigest()


def from_image(image: Image, layers: list[Layer]) -> State:
    config = image.config
    return State(
        architecture=config.architecture,
        os=config.os,
        variant=config.variant,
        created=config.created,
        author=config.author,
        config=with_path(config.config),
        layers=layers,
        history=[*config.history],
        base=image,
    )


def with_path(config: ContainerConfig) -> ContainerConfig:
    """A config without PATH gets the default one."""
    if any(item.startswith("PATH=") for item in config.env):
        return config
    return msgspec.structs.replace(config, env=[*config.env, PATH])


class Words:
    """Substitution with the variables that an instruction sees."""

    def __init__(self, env: list[str], args: dict[str, str], escape: str) -> None:
        pairs = (item.partition("=") for item in env)
        self._variables = {**args, **{name: value for name, _, value in pairs}}
        self._escape = escape

    def one(self, word: str) -> str:
        try:
            return expand(word, self._variables, self._escape)
        except WordError as error:
            raise WordError(f'failed to process "{word:.200}": {error}') from None

    def many(self, word: str) -> list[str]:
        try:
            return split(word, self._variables, self._escape)
        except WordError as error:
            raise WordError(f'failed to process "{word:.200}": {error}') from None


def apply(state: State, command: commands.Command, words: Words, args: BuildArgs) -> str:
    """Carry out an instruction that changes no file; the text for the history."""
    match command:
        case commands.Env(pairs=pairs):
            return _env(state, [(words.one(name), words.one(value)) for name, value in pairs])
        case commands.Label(pairs=pairs):
            return _label(state, [(words.one(name), words.one(value)) for name, value in pairs])
        case commands.Arg(items=items):
            return _arg(items, words, args)
        case commands.Expose(ports=ports):
            return _expose(state, [port for word in ports for port in words.many(word)])
        case commands.Volume(paths=paths):
            return _volume(state, [words.one(path) for path in paths])
        case commands.Maintainer(name=name):
            state.author = name
            return f"MAINTAINER {name}"
        case commands.User(user=user):
            return _set_text(state, "USER", "user", words.one(user))
        case commands.StopSignal(signal=signal):
            value = words.one(signal)
            number(value)
            return _set_text(state, "STOPSIGNAL", "stop_signal", value)
        case commands.Cmd() | commands.Entrypoint() | commands.Shell() | commands.Health():
            return _process(state, command)
    raise TypeError(type(command).__name__)


def _process(state: State, command: commands.Command) -> str:
    match command:
        case commands.Cmd(args=given, exec_form=exec_form):
            argv = _argv(state, given, exec_form)
            state.cmd_set = True
            state.set(cmd=argv)
            return f"CMD {go_list(argv)}"
        case commands.Entrypoint(args=given, exec_form=exec_form):
            argv = _argv(state, given, exec_form)
            state.set(entrypoint=argv or None)
            if not state.cmd_set:
                state.set(cmd=None)
            return f"ENTRYPOINT {go_list(argv)}"
        case commands.Shell(args=given):
            state.set(shell=list(given))
            return f"SHELL [{' '.join(given)}]"
        case commands.Health(check=check):
            state.set(healthcheck=check)
            return f"HEALTHCHECK {_go_health(check)}"
    raise TypeError(type(command).__name__)


def _argv(state: State, given: tuple[str, ...], exec_form: bool) -> list[str]:
    return list(given) if exec_form else [*state.shell, *given]


def _set_text(state: State, keyword: str, field: str, value: str) -> str:
    state.set(**{field: value})
    return f"{keyword} {value}"


def _env(state: State, pairs: list[tuple[str, str]]) -> str:
    env = {item.partition("=")[0]: item for item in state.config.env}
    for name, value in pairs:
        if not name:
            raise WordError("ENV names can not be blank")
        env[name] = f"{name}={value}"
    state.set(env=list(env.values()))
    return " ".join(["ENV", *(f"{name}={value}" for name, value in pairs)])


def _label(state: State, pairs: list[tuple[str, str]]) -> str:
    if any(not name for name, _ in pairs):
        raise WordError("LABEL names can not be blank")
    state.set(labels={**state.config.labels, **dict(pairs)})
    return " ".join(["LABEL", *(f"{name}={value}" for name, value in pairs)])


def _arg(items: tuple[tuple[str, str | None], ...], words: Words, args: BuildArgs) -> str:
    shown = ["ARG"]
    for name, default in items:
        name = words.one(name)
        default = None if default is None else words.one(default)
        args.declare(name, default)
        shown.append(name if default is None else f"{name}={default}")
    return " ".join(shown)


def _expose(state: State, ports: list[str]) -> str:
    exposed = dict(state.config.exposed_ports)
    for port in ports:
        exposed |= {name: {} for name in _port_names(port)}
    state.set(exposed_ports=exposed)
    return " ".join(["EXPOSE", *ports])


def _port_names(text: str) -> list[str]:
    found = _PORT.match(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not found or not 0 < first <= last < 65536:
        raise WordError(f"invalid port {text!r:.80}: write 80, 53/udp or 8000-8010/tcp")
    return [f"{port}/{(found[3] or 'tcp').lower()}" for port in range(first, last + 1)]


def _volume(state: State, paths: list[str]) -> str:
    if not all(paths):
        raise WordError("VOLUME specified can not be an empty string")
    state.set(volumes={**state.config.volumes, **{path: {} for path in paths}})
    return f"VOLUME [{' '.join(paths)}]"


def working_directory(state: State, path: str) -> str:
    """What WORKDIR ``path`` means: relative to the last one, cleaned."""
    joined = posixpath.join("/", state.config.working_dir, path)
    return "/" + posixpath.normpath(joined).lstrip("/")


def nop(state: State, text: str) -> str:
    """How an instruction that ran nothing is written into the history."""
    return " ".join([*state.shell, f"#(nop)  {text}"])


def go_list(items: list[str]) -> str:
    return "[" + " ".join(map(go_quote, items)) + "]"


def go_quote(text: str) -> str:
    """``%q`` of Go."""
    named = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    named |= {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
    return '"' + "".join(named.get(c) or _printable(c) for c in text) + '"'


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _go_health(check: Healthcheck) -> str:
    times = (check.interval, check.timeout, check.start_period, check.start_interval)
    shown = " ".join(f'"{human.go_duration(value)}"' for value in times)
    return f"&{{{go_list(check.test)} {shown} '{_printable(chr(check.retries))}'}}"
