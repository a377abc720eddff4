"""The command tree over typer: groups that load a command only when it is called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from vmm.cli import context, table
from vmm.cli.flags import Flag, Parsed, UnknownFlag, normalise
from vmm.cli.table import Entry
from vmm.model.errors import UsageError


class Command(TyperCommand):
    """A command with Docker's way of writing flags and Docker's messages about them."""

    entry: Entry

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parsed = _parse(self, ctx, args, greedy=self.entry.greedy)
        if "--help" in parsed.options:
            _print_help(ctx)
        self._check_count(ctx, len(parsed.arguments))
        ctx.params.update(bind(self.params, parsed))
        return []

    def _check_count(self, ctx: Any, given: int) -> None:
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        low = sum(1 for p in arguments if p.required)
        high = None if any(p.nargs == -1 for p in arguments) else len(arguments)
        if low <= given and (high is None or given <= high):
            return
        bound = "requires" if high == low else f"requires at {'least' if given < low else 'most'}"
        wanted = low if given < low or high is None else high
        if high == 0:
            count = "accepts no arguments"
        else:
            count = f"{bound} {wanted} argument{'' if wanted == 1 else 's'}"
        raise UsageError(
            f'"{ctx.command_path}" {count}.',
            f"Usage: {usage(ctx, self.entry)}\n  See '{ctx.command_path} --help'.",
        )

    def get_usage(self, ctx: Any) -> str:
        return f"Usage: {usage(ctx, self.entry)}"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        text, _, examples = inspect.cleandoc(self.help or "").partition("\nExamples:\n")
        formatter.write(f"{self.get_usage(ctx)}\n\n{text.strip()}\n\nOptions:\n")
        formatter.write(options_help(self.get_params(ctx)))
        formatter.write(f"\nExamples:\n{examples.rstrip()}\n")


class Group(TyperGroup):
    """A group whose commands are entries of a table, imported when called."""

    entries: dict[str, Entry]
    subgroups: dict[str, tuple[str, dict[str, Entry]]]
    about: str

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parsed = _parse(self, ctx, args, greedy=True)
        if "--help" in parsed.options:
            _print_help(ctx)
        # The parser itself sees no options: bind() has them.
        params, self.params, self.add_help_option = self.params, [], False
        try:
            rest: list[str] = super().parse_args(ctx, parsed.arguments)
        finally:
            self.params, self.add_help_option = params, True
        ctx.params.update(bind(params, parsed))
        return rest

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.subgroups, *(e.name for e in self.entries.values() if not e.hidden)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in self.subgroups:
            about, entries = self.subgroups[cmd_name]
            return make_group(cmd_name, about, entries, {})
        return load(self.entries[cmd_name]) if cmd_name in self.entries else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, Any, list[str]]:
        if args[0] == "help":  # `help run`, as `run --help`
            args = [*args[1:], "--help"]
        if args[0] == "--help":
            _print_help(ctx)
        command = self.get_command(ctx, args[0])
        if command is None:
            raise _unknown_command(ctx.command_path, args[0], self.list_commands(ctx))
        return args[0], command, args[1:]

    def get_usage(self, ctx: Any) -> str:
        return f"Usage: {ctx.command_path} [OPTIONS] COMMAND"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"{self.get_usage(ctx)}\n\n{self.about}\n")
        if self.subgroups:
            formatter.write("\nManagement Commands:\n")
            formatter.write(columns([(n, about) for n, (about, _) in self.subgroups.items()]))
        shown = sorted(e for e in self.entries.values() if not e.hidden)
        formatter.write("\nCommands:\n" + columns([(e.name, e.summary) for e in shown]))
        formatter.write("\nOptions:\n" + options_help(self.get_params(ctx)))
        example = f"{ctx.command_path} {shown[0].name} --help"
        if self.subgroups:
            example = "vmm run --rm -it debian:bookworm bash"
        formatter.write(f"\nExamples:\n  {example}\n")
        formatter.write(f"\nRun '{ctx.command_path} COMMAND --help' for more on a command.\n")


def _parse(command: Any, ctx: Any, args: list[str], *, greedy: bool) -> Parsed:
    """Canonical arguments; an unknown flag of Docker's is refused by name."""
    try:
        return normalise(args, flag_table(command.get_params(ctx)), stop_at_argument=greedy)
    except UnknownFlag as error:
        from vmm.cli import refused

        why = refused.flag(command.name, error.flag)
        if why:
            raise UsageError(f"{error.flag} is not supported by {ctx.command_path}", why) from None
        raise UsageError(error.message, f"See '{ctx.command_path} --help'.") from None
    except UsageError as error:
        raise UsageError(error.message, f"See '{ctx.command_path} --help'.") from None


def bind(params: list[Any], parsed: Parsed) -> dict[str, Any]:
    """Values of parameters by name. Every value is a text, a list of texts or a boolean, so
    the parser's own conversion, slow to load, has nothing to do."""
    given: dict[str, list[str | bool]] = {}
    for word in parsed.options:
        name, equals, value = word.partition("=")
        given.setdefault(name, []).append(value if equals else True)
    values: dict[str, Any] = {}
    arguments = list(parsed.arguments)
    for param in params:
        if param.param_type_name == "argument":
            values[param.name] = _argument(param, arguments)
            continue
        found = [value for name in param.opts for value in given.get(name, ())]
        if any(name in given for name in param.secondary_opts):
            found = [False]
        chosen = found if param.multiple else found[-1] if found else None
        values[param.name] = param.default if not found else chosen
    return values


def _argument(param: Any, left: list[str]) -> Any:
    """Take what belongs to an argument from those that are left."""
    if param.nargs == -1:
        taken, left[:] = list(left), []
        return taken or param.default
    return left.pop(0) if left else param.default


def _print_help(ctx: Any) -> None:
    typer.echo(ctx.get_help())
    raise typer.Exit


def _unknown_command(path: str, name: str, known: list[str]) -> UsageError:
    from difflib import get_close_matches

    from vmm.cli import refused

    if path == "vmm" and name in refused.COMMANDS:
        return UsageError(f"vmm {name} is not supported", refused.COMMANDS[name])
    near = get_close_matches(name, known, 1)
    meant = f"Did you mean '{path} {near[0]}'? " if near else ""
    return UsageError(f"'{name:.80}' is not a {path} command.", f"{meant}See '{path} --help'.")


def flag_table(params: list[Any]) -> dict[str, Flag]:
    """Every name of every option, dashes included."""
    flags: dict[str, Flag] = {}
    for param in params:
        if param.param_type_name == "option":
            long = max(param.opts, key=len)
            flag = Flag(long, bool(param.is_flag), next(iter(param.secondary_opts), ""))
            flags.update(dict.fromkeys(param.opts, flag))
    return flags


def usage(ctx: Any, entry: Entry) -> str:
    return f"{ctx.command_path} [OPTIONS] {entry.usage}".rstrip()


def options_help(params: list[Any]) -> str:
    """Options in two columns, as Docker shows them: ``-d, --detach``."""
    rows = []
    for param in params:
        if param.param_type_name != "option" or getattr(param, "hidden", False):
            continue
        short = next((o for o in param.opts if not o.startswith("--")), "")
        longs = ", ".join(o for o in param.opts if o.startswith("--"))
        kind = "" if param.is_flag else f" {param.metavar or 'string'}"
        rows.append((f"{short + ', ' if short else '    '}{longs}{kind}", param.help or ""))
    return columns(sorted(rows, key=lambda row: row[0].lstrip(" -").split("--")[-1]))


def columns(rows: list[tuple[str, str]]) -> str:
    width = min(30, max((len(name) for name, _ in rows), default=0))
    return "".join(f"  {name:{width}}  {text}\n" for name, text in rows)


def load(entry: Entry) -> Any:
    """Import the function of an entry and make its command."""
    from vmm.cli.groups import spread

    module, _, name = entry.target.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"vmm.cli.{module}"), name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(entry.name, cls=Command)(_failing(spread(function), entry.failure))
    command = typer.main.get_command(app)
    command.entry = entry  # type: ignore[attr-defined]
    command.name = entry.name
    return command


def _failing(function: Callable[..., Any], code: int) -> Callable[..., Any]:
    """Errors of vmm itself end with ``code``; those with a code of their own keep it."""
    if code == 1:
        return function
    from functools import wraps

    from vmm.model.errors import VmmError

    @wraps(function)
    def guarded(**values: Any) -> Any:
        try:
            return function(**values)
        except VmmError as error:
            if error.exit_code == 1:
                error.exit_code = code
            raise

    return guarded


def make_group(
    name: str,
    about: str,
    entries: dict[str, Entry],
    subgroups: dict[str, tuple[str, dict[str, Entry]]],
    callback: Callable[..., Any] | None = None,
) -> Any:
    app = typer.Typer(
        name=name,
        cls=Group,
        add_completion=False,
        rich_markup_mode=None,
        invoke_without_command=True,
    )
    app.callback()(callback or _show_help)
    group = typer.main.get_group(app)
    group.entries, group.subgroups, group.about = entries, subgroups, about  # type: ignore[attr-defined]
    group.name = name
    return group


def _show_help(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _root(
    ctx: typer.Context,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="dir", help="Directory of the instance (VMM_ROOT)"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", "-v", help="Print the version and quit")
    ] = False,
) -> None:
    context.use(root)
    if version:
        from vmm import __version__

        typer.echo(f"vmm version {__version__}")
        raise typer.Exit
    _show_help(ctx)


def root_group() -> Any:
    """The whole command tree; nothing of it is imported yet."""
    about = "One spec and one image for containers, jails and virtual machines"
    return make_group("vmm", about, table.TOP, table.GROUPS, _root)


def synopsis(documentation: str) -> str:
    """First sentence of a docstring, without its full stop."""
    first = re.split(r"\n\s*\n", inspect.cleandoc(documentation))[0]
    return " ".join(first.split()).removesuffix(".")
