"""What a caller (CLI, YAML, API) asks for, before the image is consulted.

None means that the caller said nothing, so that the image's value holds.
"""

import msgspec

from vmm.model.spec import Health, Log, Mount, Port, Resources, Restart, Security


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    image: str
    command: tuple[str, ...] = ()
    name: str = ""
    backend: str = "auto"
    #: () clears the image's; None keeps it.
    entrypoint: tuple[str, ...] | None = None
    #: KEY=VALUE, later ones win.
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    tty: bool = False
    stdin_open: bool = False
    stdin_once: bool = False
    mounts: tuple[Mount, ...] = ()
    ports: tuple[Port, ...] = ()
    publish_all: bool = False
    network: str = "bridge"
    hostname: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    restart: Restart = Restart()
    #: What is set wins over the image's; None: all as in the image.
    health: Health | None = None
    #: None: the settings' defaults.
    log: Log | None = None
    labels: dict[str, str] = {}
    metadata: dict[str, str] = {}
    sysctls: dict[str, str] = {}
    init: bool = False
    auto_remove: bool = False
    stop_signal: str | None = None
    stop_timeout: int | None = None
    cidfile: str = ""


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True):
    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    tty: bool = False
    stdin: bool = False
    detach: bool = False
    privileged: bool = False
    #: Rows and columns that the terminal begins with.
    size: tuple[int, int] | None = None


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Limits to change; None leaves one as it is."""

    memory: int | None = None
    #: Memory plus swap; -1 is unlimited swap.
    memory_swap: int | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    pids_limit: int | None = None
    restart: Restart | None = None


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    context: str
    #: Path of the Dockerfile; "" is ``<context>/Dockerfile``.
    dockerfile: str = ""
    tags: tuple[str, ...] = ()
    build_args: dict[str, str | None] = {}
    labels: dict[str, str] = {}
    no_cache: bool = False
    network: str = "bridge"
    quiet: bool = False
