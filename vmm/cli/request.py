"""Options of ``run`` and ``create``, made into a request; every fault names its flag."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from vmm.cli.create_options import CreateOptions, Texts
from vmm.model import mounts, options, ports
from vmm.model.errors import UsageError
from vmm.model.request import CreateRequest
from vmm.model.spec import Health, Log, Mount, Resources, Security

T = TypeVar("T")
#: Largest file of options (environment, labels, seccomp profile) that is read.
MAX_FILE = 16 << 20


def one(flag: str, text: str | None, parse: Callable[[str], T]) -> T | None:
    """The parsed value of an option; None when it was not given."""
    if text is None:
        return None
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(
            f'invalid argument "{text:.200}" for "{flag}" flag: {error.message}', error.hint
        ) from None


def many(flag: str, texts: Texts, parse: Callable[[str], T]) -> tuple[T, ...]:
    """The parsed values of a repeated option."""
    parsed = (one(flag, text, parse) for text in texts or ())
    return tuple(value for value in parsed if value is not None)


def build(image: str, command: Iterable[str], given: CreateOptions, log: Log) -> CreateRequest:
    """The request; ``log`` are the instance's defaults."""
    restart = options.restart(given.restart)
    if given.rm and restart.policy != "no":
        raise UsageError("Conflicting options: --restart and --rm", "drop one of the two")
    env_lines = [line for path in given.env_file or () for line in env_file_lines(path)]
    env = options.environment([*env_lines, *(given.env or ())], os.environ)
    return CreateRequest(
        image=image,
        command=tuple(command),
        name=given.name,
        backend=given.backend,
        entrypoint=_entrypoint(given.entrypoint),
        env=tuple(env),
        user=given.user,
        workdir=one("-w, --workdir", given.workdir, absolute),
        tty=given.tty,
        stdin_open=given.interactive,
        mounts=_mounts(given),
        ports=tuple(p for group in many("-p, --publish", given.publish, ports.publish)
                    for p in group),
        publish_all=given.publish_all,
        network=options.network_mode(given.network),
        hostname=options.hostname(given.hostname),
        dns=many("--dns", given.dns, options.dns_server),
        dns_search=tuple(given.dns_search or ()),
        dns_options=tuple(given.dns_option or ()),
        extra_hosts=many("--add-host", given.add_host, options.extra_host),
        resources=_resources(given),
        security=_security(given),
        restart=restart,
        health=_health(given),
        log=options.log(given.log_driver, given.log_opt or (), log),
        labels=_labels(given),
        metadata=options.metadata(given.meta or ()),
        sysctls=options.pairs(given.sysctl or (), "sysctl", need_value=True),
        init=given.init,
        auto_remove=given.rm,
        stop_signal=one("--stop-signal", given.stop_signal, options.stop_signal),
        stop_timeout=whole("--stop-timeout", given.stop_timeout, low=-1, high=1 << 31),
        cidfile=given.cidfile,
    )  # fmt: skip


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return (text,) if text else ()


def absolute(path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(
            f"the working directory '{path:.80}' is invalid, it needs to be an absolute path"
        )
    return path


def whole(flag: str, text: str | None, *, low: int, high: int) -> int | None:
    """The whole number of an option; None when it was not given."""
    return None if text is None else options.integer(text, flag, low=low, high=high)


def _mounts(given: CreateOptions) -> tuple[Mount, ...]:
    cwd = os.getcwd()
    return (
        *many("-v, --volume", given.volume, lambda text: mounts.volume(text, cwd)),
        *many("--mount", given.mount, mounts.mount),
        *many("--tmpfs", given.tmpfs, mounts.tmpfs),
    )


def _resources(given: CreateOptions) -> Resources:
    memory = one("-m, --memory", given.memory, options.memory)
    swap = one("--memory-swap", given.memory_swap, lambda text: options.memory_swap(text, memory))
    shm = one("--shm-size", given.shm_size, options.size)
    pids = whole("--pids-limit", given.pids_limit, low=-1, high=1 << 22)
    return Resources(
        memory=memory,
        memory_swap=swap,
        nano_cpus=one("--cpus", given.cpus, options.nano_cpus),
        cpu_shares=whole("--cpu-shares", given.cpu_shares, low=2, high=262144),
        cpuset_cpus=options.cpuset(given.cpuset_cpus) if given.cpuset_cpus else "",
        pids_limit=-1 if pids == 0 else pids,
        shm_size=64 << 20 if shm is None else shm,
        ulimits=tuple({u.name: u for u in many("--ulimit", given.ulimit, options.ulimit)}.values()),
        devices=many("--device", given.device, options.device),
    )


def _security(given: CreateOptions) -> Security:
    chosen = options.security(given.security_opt or ())
    seccomp = chosen.seccomp
    if seccomp not in {"", "unconfined"}:
        seccomp = _read(seccomp, "--security-opt seccomp")
    return Security(
        privileged=given.privileged,
        cap_add=options.capabilities(given.cap_add or ()),
        cap_drop=options.capabilities(given.cap_drop or ()),
        read_only_root=given.read_only,
        no_new_privileges=chosen.no_new_privileges,
        seccomp=seccomp,
        unmask=chosen.unmask,
    )


def _health(given: CreateOptions) -> Health | None:
    """None when no option says anything (docker-run(1), ``--health-cmd`` and the others)."""
    asked = Health(
        test=("CMD-SHELL", given.health_cmd) if given.health_cmd else (),
        interval=_time("--health-interval", given.health_interval),
        timeout=_time("--health-timeout", given.health_timeout),
        start_period=_time("--health-start-period", given.health_start_period),
        start_interval=_time("--health-start-interval", given.health_start_interval),
        retries=whole("--health-retries", given.health_retries, low=0, high=2**31 - 1) or 0,
    )
    if not given.no_healthcheck:
        return None if asked == Health() else asked
    if asked != Health():
        raise UsageError("--no-healthcheck conflicts with --health-* options", "drop one of them")
    return Health(test=("NONE",))


def _time(flag: str, text: str | None) -> int:
    """Nanoseconds of a health option; 0 when it was not given, or is 0."""
    return one(flag, text, options.probe_time) or 0


def _labels(given: CreateOptions) -> dict[str, str]:
    lines = [
        line for path in given.label_file or () for line in env_file_lines(path, "--label-file")
    ]
    return options.pairs([*lines, *(given.label or ())], "label")


def env_file_lines(path: str, flag: str = "--env-file") -> list[str]:
    return options.env_file(_read(path, flag), path)


def _read(path: str, flag: str) -> str:
    """A small text file named by an option."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{flag}: open {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{flag}: {path} is not UTF-8 text") from None
    if len(text) > MAX_FILE:
        raise UsageError(f"{flag}: {path} is larger than {MAX_FILE} bytes")
    return text


def log_defaults() -> Log:
    """The instance's settings for logs."""
    from vmm.cli import context

    settings = context.settings()
    driver = "none" if settings.log_driver == "none" else "json-file"
    return Log(driver=driver, max_size=settings.log_max_size, max_file=settings.log_max_file)  # type: ignore[arg-type]
