"""Instructions to checked stages: what each may say, by Docker's Dockerfile reference.

Everything that can be told from the text alone is told here, for the whole file at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from vmm.dockerfile import commands
from vmm.dockerfile.parser import Dockerfile, Instruction, LineError
from vmm.model.errors import InvalidDocument
from vmm.model.image import Healthcheck

_ALIAS = re.compile(r"[a-z][a-z0-9-_.]*\Z")
_REMOTE = re.compile(r"(?:https?|ftp|git|ssh)://|git@|.+\.git(?:#.*)?\Z")
_DURATION = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+\Z")
_UNIT = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_UNIT |= {"m": 60 * 10**9, "h": 3600 * 10**9}
#: Flags that Docker (BuildKit) knows and this builder does not.
_KNOWN_FLAGS = {
    "FROM": ("platform",),
    "RUN": ("mount", "network", "security", "device"),
    "COPY": ("link", "parents", "exclude"),
    "ADD": ("link", "checksum", "keep-git-dir", "exclude", "unpack"),
}
_HINT = "docs.docker.com/reference/dockerfile describes the language"


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A FROM and what follows it."""

    base: commands.From
    commands: tuple[commands.Command, ...]


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file: the ARGs before the first FROM, and the stages."""

    name: str
    arguments: tuple[commands.Arg, ...]
    stages: tuple[Stage, ...]
    escape: str

    @property
    def steps(self) -> int:
        return len(self.arguments) + sum(1 + len(stage.commands) for stage in self.stages)


def analyse(document: Dockerfile) -> Program:
    """The checked program; InvalidDocument lists every fault with its line."""
    faults: list[str] = []
    arguments: list[commands.Arg] = []
    stages: list[tuple[commands.From, list[commands.Command]]] = []
    for instruction in document.instructions:
        try:
            command = _command(instruction)
            if isinstance(command, commands.From):
                _check_alias(command, [base for base, _ in stages])
                stages.append((command, []))
            elif stages:
                stages[-1][1].append(command)
            elif isinstance(command, commands.Arg):
                arguments.append(command)
            else:
                raise LineError(f"{instruction.keyword} before the first FROM: only ARG may be")
        except LineError as error:
            faults.append(f"line {instruction.line}: {error}")
    if not stages and not faults:
        faults.append("no build stage: the file has no FROM")
    if faults:
        raise InvalidDocument(document.name, faults, _HINT)
    return Program(
        name=document.name,
        arguments=tuple(arguments),
        stages=tuple(Stage(base=base, commands=tuple(body)) for base, body in stages),
        escape=document.escape,
    )


def _command(instruction: Instruction) -> commands.Command:
    maker = _MAKERS.get(instruction.keyword)
    if maker is None:
        raise LineError(_unknown(instruction.keyword))
    if instruction.heredocs:
        raise LineError(f"heredocs (<<{instruction.heredocs[0].name:.40}) are not supported")
    return maker(instruction)


def _unknown(keyword: str) -> str:
    if keyword == "ONBUILD":
        return "ONBUILD is not supported"
    return f"unknown instruction: {keyword:.80}"


def _check_alias(command: commands.From, before: list[commands.From]) -> None:
    if any(command.alias and command.alias == base.alias for base in before):
        raise LineError(f"the stage name {command.alias} is used twice")


def _flags(instruction: Instruction, allowed: tuple[str, ...]) -> dict[str, str]:
    values: dict[str, str] = {}
    for flag in instruction.flags:
        name, equals, value = flag[2:].partition("=")
        if name in _KNOWN_FLAGS.get(instruction.keyword, ()):
            raise LineError(f"flag --{name} of {instruction.keyword} is not supported")
        if name not in allowed:
            raise LineError(f"unknown flag: --{name:.80}")
        if not equals:
            raise LineError(f"missing a value on flag: --{name}")
        if name in values:
            raise LineError(f"duplicate flag specified: --{name}")
        values[name] = value
    return values


def _one(instruction: Instruction) -> str:
    _flags(instruction, ())
    if len(instruction.args) != 1:
        raise LineError(f"{instruction.keyword} requires exactly one argument")
    return instruction.args[0]


def _some(instruction: Instruction) -> tuple[str, ...]:
    _flags(instruction, ())
    if not instruction.args:
        raise LineError(f"{instruction.keyword} requires at least one argument")
    return instruction.args


def _from(it: Instruction) -> commands.From:
    _flags(it, ())
    if len(it.args) not in (1, 3) or (len(it.args) == 3 and it.args[1].lower() != "as"):
        raise LineError("FROM requires either one argument, or three: FROM <image> AS <name>")
    alias = it.args[2].lower() if len(it.args) == 3 else ""
    if alias and (not _ALIAS.match(alias) or alias == "scratch"):
        raise LineError(
            f"invalid stage name {it.args[2]!r:.80}: it must start with a letter and contain "
            "only letters, digits, '-', '_' and '.'"
        )
    return commands.From(line=it.line, text=it.original, image=it.args[0], alias=alias)


def _run(it: Instruction) -> commands.Run:
    args = _some(it)
    return commands.Run(line=it.line, text=it.original, args=args, exec_form=it.exec_form)


def _copy(it: Instruction) -> commands.Copy:
    extract = it.keyword == "ADD"
    flags = _flags(it, ("chown", "chmod") if extract else ("chown", "chmod", "from"))
    if len(it.args) < 2:
        raise LineError(f"{it.keyword} requires at least two arguments")
    if extract:
        refuse_remote(it.args[:-1])
    return commands.Copy(
        line=it.line,
        text=it.original,
        sources=it.args[:-1],
        destination=it.args[-1],
        extract=extract,
        origin=flags.get("from", ""),
        chown=flags.get("chown", ""),
        chmod=flags.get("chmod", ""),
    )


def refuse_remote(sources: tuple[str, ...]) -> None:
    """LineError for an ADD source that is not a local file."""
    for source in sources:
        if _REMOTE.match(source):
            raise LineError(f"ADD of a remote source is not supported: {source:.200}")


def _named_pairs(it: Instruction) -> tuple[tuple[str, str], ...]:
    args = _some(it)
    pairs = tuple(zip(args[::3], args[1::3], strict=True))
    if any(not name for name, _ in pairs):
        raise LineError(f"{it.keyword} names can not be blank")
    return pairs


def _env(it: Instruction) -> commands.Env:
    return commands.Env(line=it.line, text=it.original, pairs=_named_pairs(it))


def _label(it: Instruction) -> commands.Label:
    return commands.Label(line=it.line, text=it.original, pairs=_named_pairs(it))


def _arg(it: Instruction) -> commands.Arg:
    items: list[tuple[str, str | None]] = []
    for word in _some(it):
        name, equals, value = word.partition("=")
        if not name:
            raise LineError("ARG names can not be blank")
        items.append((name, value if equals else None))
    return commands.Arg(line=it.line, text=it.original, items=tuple(items))


def _maintainer(it: Instruction) -> commands.Maintainer:
    return commands.Maintainer(line=it.line, text=it.original, name=_one(it))


def _expose(it: Instruction) -> commands.Expose:
    return commands.Expose(line=it.line, text=it.original, ports=tuple(sorted(_some(it))))


def _volume(it: Instruction) -> commands.Volume:
    paths = tuple(path.strip() for path in _some(it))
    if not all(paths):
        raise LineError("VOLUME specified can not be an empty string")
    return commands.Volume(line=it.line, text=it.original, paths=paths)


def _user(it: Instruction) -> commands.User:
    return commands.User(line=it.line, text=it.original, user=_one(it))


def _workdir(it: Instruction) -> commands.Workdir:
    return commands.Workdir(line=it.line, text=it.original, path=_one(it))


def _entrypoint(it: Instruction) -> commands.Entrypoint:
    _flags(it, ())
    return commands.Entrypoint(
        line=it.line, text=it.original, args=it.args, exec_form=it.exec_form or not it.args
    )


def _cmd(it: Instruction) -> commands.Cmd:
    _flags(it, ())
    return commands.Cmd(
        line=it.line, text=it.original, args=it.args, exec_form=it.exec_form or not it.args
    )


def _shell(it: Instruction) -> commands.Shell:
    args = _some(it)
    if not it.exec_form:
        raise LineError('SHELL requires the arguments to be in JSON form: SHELL ["/bin/sh", "-c"]')
    return commands.Shell(line=it.line, text=it.original, args=args)


def _stop_signal(it: Instruction) -> commands.StopSignal:
    return commands.StopSignal(line=it.line, text=it.original, signal=_one(it))


def _health(it: Instruction) -> commands.Health:
    flags = _flags(it, ("interval", "timeout", "start-period", "start-interval", "retries"))
    if not it.args:
        raise LineError("HEALTHCHECK requires an argument: CMD or NONE")
    kind, arguments = it.args[0].upper(), it.args[1:]
    if kind == "NONE":
        if arguments or flags:
            raise LineError("HEALTHCHECK NONE takes no arguments")
        check = Healthcheck(test=["NONE"])
    elif kind == "CMD":
        check = _health_command(arguments, it.exec_form, flags)
    else:
        raise LineError(f"unknown type {it.args[0]!r:.80} in HEALTHCHECK (try CMD)")
    return commands.Health(line=it.line, text=it.original, check=check)


def _health_command(
    arguments: tuple[str, ...], exec_form: bool, flags: Mapping[str, str]
) -> Healthcheck:
    if not arguments:
        raise LineError("missing command after HEALTHCHECK CMD")
    retries = flags.get("retries", "0") or "0"
    if not (retries.isascii() and retries.isdigit() and len(retries) < 10):
        raise LineError(f"--retries must be a whole number of at least 0, not {retries!r:.80}")
    return Healthcheck(
        test=["CMD" if exec_form else "CMD-SHELL", *arguments],
        interval=_interval("interval", flags),
        timeout=_interval("timeout", flags),
        start_period=_interval("start-period", flags),
        start_interval=_interval("start-interval", flags),
        retries=int(retries),
    )


def _interval(name: str, flags: Mapping[str, str]) -> int:
    text = flags.get(name, "")
    value = duration(text) if text else 0
    if value is None:
        raise LineError(f"invalid duration {text!r:.80} of --{name}: write 30s, 1m30s or 500ms")
    if value and value < 10**6:
        raise LineError(f"--{name} {text!r:.80} cannot be less than 1ms")
    return value


def duration(text: str) -> int | None:
    """Nanoseconds of ``1h5m10.5s`` (time.ParseDuration of Go); None if it is none."""
    if text == "0":
        return 0
    if len(text) > 64 or not _DURATION.match(text):
        return None
    total = 0
    for number, unit in re.findall(r"([\d.]+)([a-zµμ]+)", text):
        total += round(float(number) * _UNIT[unit])
    total = -total if text.startswith("-") else total
    return total if abs(total) < 2**63 else None


_MAKERS: dict[str, Callable[[Instruction], commands.Command]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _health,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
