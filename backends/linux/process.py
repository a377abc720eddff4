"""The process itself: environment, limits, identity, privileges, command."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.backends.linux import capabilities, limits
from vmm.model.backend import CompileInput, User
from vmm.model.ids import short
from vmm.model.launch import Op, op
from vmm.model.spec import Security, WorkloadSpec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def hostname(spec: WorkloadSpec) -> str:
    """The name inside; "" keeps the host's (network mode host)."""
    if spec.network.hostname:
        return spec.network.hostname
    return "" if spec.network.mode == "host" else short(spec.id)


def environment(
    spec: WorkloadSpec, user: User, tty: bool, more: Iterable[str] = ()
) -> tuple[str, ...]:
    """KEY=VALUE, later ones winning in the place of the first; Docker's defaults before them.

    HOME is the user's unless it was set.
    """
    values = {"PATH": PATH}
    if name := hostname(spec):
        values["HOSTNAME"] = name
    if tty:
        values["TERM"] = "xterm"
    for pair in (*spec.process.env, *more):
        key, _, value = pair.partition("=")
        if key:
            values[key] = value
    values.setdefault("HOME", user.home or "/")
    return tuple(f"{key}={value}" for key, value in values.items())


def prepare(given: CompileInput, env: tuple[str, ...], cwd: Op) -> list[Op]:
    """What is done while still all-powerful."""
    ops = limits.operations(given.spec, given.host)
    return [*ops, op("umask", "0022"), cwd, op("env", *env)]


def confine(given: CompileInput, user: User, security: Security) -> list[Op]:
    """User, filter and capabilities. Without no_new_privs loading a filter takes CAP_SYS_ADMIN
    (seccomp(2)), so it comes before the capabilities go; with it, as late as possible."""
    sets = capabilities.sets_for(security, given.host, user.uid)
    filters = [op("seccomp", given.seccomp)] if given.seccomp else []
    ops = [op("groups", *user.groups)]
    identity = [op("user", user.uid, user.gid), op("caps", *sets.hexadecimal())]
    if security.no_new_privileges:
        return [*ops, *identity, op("no-new-privs"), *filters]
    return [*ops, *filters, *identity]
