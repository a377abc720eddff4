"""``vmm run`` and ``vmm create``."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from vmm.cli import context, streams
from vmm.cli.create_options import CreateOptions, RunOptions
from vmm.cli.output import line
from vmm.model.errors import LaunchError, ShimLost, UsageError, VmmError

if TYPE_CHECKING:
    from vmm.engine.sessions import Session

Image = Annotated[str, typer.Argument(metavar="IMAGE")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[COMMAND] [ARG...]")]


def run(image: Image, options: RunOptions, command: Words = None) -> int:
    """Create and run a new workload from an image.

    All that follows IMAGE belongs to the workload. In the foreground the exit code is the
    workload's; 125 vmm failed, 126 the command cannot be executed, 127 it was not found.

    Examples:
      vmm run --rm -it debian:bookworm bash
      vmm run -d --name web -p 8080:80 -v www:/var/www web:latest
      vmm run --rm --network none --memory 512m --cpus 1.5 busybox true
    """
    from msgspec.structs import replace

    from vmm.cli.request import build, log_defaults

    attached = _attached(options)
    request = build(image, command or (), options, log_defaults())
    if not options.detach:
        streams.check_terminal(tty=options.tty, stdin="stdin" in attached)
        request = replace(request, stdin_once=options.interactive)
    engine = context.engine()
    spec = engine.create(request)
    try:
        if options.detach:
            engine.start(spec.id)
            line(spec.id)
            return 0
        session = engine.attach(
            spec.id, start=True, stdin="stdin" in attached, size=streams.size(tty=options.tty)
        )
    except BaseException as error:
        _discard(spec.id, options, error)
        raise
    code = _pump(session, attached, options)
    if code is None:
        return 0
    engine.finish(spec.id)
    return code


def _pump(session: Session, attached: set[str], options: RunOptions) -> int | None:
    """The streams until the end; the start may fail meanwhile."""
    try:
        return streams.pump(
            session,
            tty=options.tty,
            wanted=attached,
            detach_keys=options.detach_keys,
            proxy_signals=options.sig_proxy and not options.tty,
        )
    except LaunchError as error:
        _discard(session.spec.id, options, error)
        raise


def _discard(workload: str, options: RunOptions, error: BaseException) -> None:
    """Remove what did not start, if it is not to be kept."""
    if options.rm or _refused(error):
        with contextlib.suppress(VmmError):
            context.engine().remove(workload, force=True, volumes=True)


def _refused(error: BaseException) -> bool:
    """Whether nothing was started, as for a port in use: the workload is then not kept.

    One whose command could not be executed stays, as Docker's does, for inspection; so does one
    that was stopped on purpose while it was being started.
    """
    if isinstance(error, LaunchError):
        return error.exit_code == LaunchError.REFUSED
    return isinstance(error, VmmError) and not isinstance(error, ShimLost)


def _attached(options: RunOptions) -> set[str]:
    """The streams that ``-a``, ``-d`` and ``-i`` ask for."""
    if options.detach:
        if options.attach:
            raise UsageError("Conflicting options: -a and -d", "drop one of the two")
        if options.rm and options.restart not in {"", "no"}:
            raise UsageError("Conflicting options: --restart and --rm", "drop one of the two")
        return set()
    names = {name.lower() for name in options.attach or ()}
    if bad := sorted(names - streams.NAMES):
        raise UsageError(
            f'invalid argument "{bad[0]:.80}" for "-a, --attach" flag:'
            " valid streams are STDIN, STDOUT and STDERR"
        )
    if not names:
        names = {"stdout", "stderr"} | ({"stdin"} if options.interactive else set())
    return names


def create(image: Image, options: CreateOptions, command: Words = None) -> None:
    """Create a new workload without starting it.

    Its ID is printed; start it with vmm start.

    Examples:
      vmm create --name db -v data:/var/lib/db db:latest
      vmm start db
    """
    from vmm.cli.request import build, log_defaults

    request = build(image, command or (), options, log_defaults())
    line(context.engine().create(request).id)
