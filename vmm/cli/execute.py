"""``vmm exec`` and ``vmm attach``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vmm.cli import context, streams
from vmm.model.errors import Conflict

if TYPE_CHECKING:
    from vmm.engine.sessions import Session

Container = Annotated[str, typer.Argument(metavar="CONTAINER")]
Keys = Annotated[str | None, typer.Option("--detach-keys", help="Keys that detach (ctrl-p,ctrl-q)")]


def exec_(
    container: Container,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND [ARG...]")],
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run the command in the background")
    ] = False,
    detach_keys: Keys = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="list", help="Set environment variables"),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option("--env-file", metavar="list", help="Read in a file of environment variables"),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Keep STDIN open")
    ] = False,
    privileged: Annotated[
        bool, typer.Option("--privileged", help="Give extended privileges to the command")
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Allocate a pseudo-TTY")] = False,
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", help="Username or UID (format: <name|uid>[:<group|gid>])"),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", help="Working directory inside")
    ] = None,
) -> int:
    """Run a command in a running workload.

    The exit code is the command's; 126 it cannot be executed, 127 it was not found.

    Examples:
      vmm exec -it web sh
      vmm exec -u www-data -w /var/www web ls -l
    """
    from vmm.cli.request import absolute, env_file_lines, one
    from vmm.model.options import environment
    from vmm.model.request import ExecRequest

    lines = [line for path in env_file or () for line in env_file_lines(path)]
    request = ExecRequest(
        argv=tuple(command),
        env=tuple(environment([*lines, *(env or ())], os.environ)),
        user=user,
        workdir=one("-w, --workdir", workdir, absolute),
        tty=tty,
        stdin=interactive and not detach,
        detach=detach,
        privileged=privileged,
        size=streams.size(tty=tty and not detach),
    )
    if not detach:
        streams.check_terminal(tty=tty, stdin=interactive)
    session = context.engine().exec(container, request)
    if session is None:
        return 0
    wanted = {"stdout", "stderr"} | ({"stdin"} if interactive else set())
    return streams.pump(session, tty=tty, wanted=wanted, detach_keys=detach_keys) or 0


def attach(
    container: Container,
    detach_keys: Keys = None,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Do not attach STDIN")] = False,
    sig_proxy: Annotated[
        bool, typer.Option("--sig-proxy/--no-sig-proxy", help="Proxy signals to the process")
    ] = True,
) -> int:
    """Attach to a running workload's streams.

    The detach keys leave it running; when it ends, its exit code is vmm's.

    Examples:
      vmm attach web
      vmm attach --no-stdin --sig-proxy=false web
    """
    engine = context.engine()
    view = engine.view(container)
    if view.state.status == "paused":
        raise Conflict("You cannot attach to a paused container, unpause it first")
    process = view.spec.process
    stdin = process.stdin_open and not no_stdin
    streams.check_terminal(tty=process.tty, stdin=stdin)
    session = engine.attach(view.spec.id, stdin=stdin)
    return finish(session, tty=process.tty, stdin=stdin, keys=detach_keys, proxy=sig_proxy)


def console(container: Container, detach_keys: Keys = None) -> None:
    """Connect to the serial console of a virtual machine.

    It shows what the guest's kernel says. The detach keys leave it. Only one reader gets
    each byte.

    Examples:
      vmm console vm1
      vmm console --detach-keys ctrl-] vm1
    """
    from vmm.control.console import converse

    engine = context.engine()
    path = engine.console(container)
    converse(path, detach_keys=detach_keys or engine.settings.detach_keys)


def finish(session: Session, *, tty: bool, stdin: bool, keys: str | None, proxy: bool) -> int:
    """Pump an attached workload to its end and tidy up after it."""
    wanted = {"stdout", "stderr"} | ({"stdin"} if stdin else set())
    code = streams.pump(
        session, tty=tty, wanted=wanted, detach_keys=keys, proxy_signals=proxy and not tty
    )
    if code is not None:
        context.engine().finish(session.spec.id)
    return code or 0
