"""The workload: what a user wants to run, said once, for every backend.

Sizes are bytes, times nanoseconds (durations of Docker's fields likewise),
CPU is in billionths of a CPU (``nano_cpus``).  None means: not asked for.
"""

from typing import Literal

import msgspec

SCHEMA = 1


class Process(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What runs: the resolved command and its surroundings (OCI image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    #: ``user[:group]``, names or numbers, resolved against the image's own files at start.
    user: str = ""
    tty: bool = False
    stdin_open: bool = False
    #: Close the workload's standard input when the first attached client leaves.
    stdin_once: bool = False

    @property
    def argv(self) -> tuple[str, ...]:
        return self.entrypoint + self.cmd


class Mount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One mount. ``source``: host path (bind), volume name (volume), unused (tmpfs)."""

    kind: Literal["bind", "volume", "tmpfs"]
    target: str
    source: str = ""
    read_only: bool = False
    #: Made for an image's VOLUME or a bare ``-v /path``; removed by ``--rm`` and ``rm -v``.
    anonymous: bool = False
    #: Do not fill a new volume from the image.
    nocopy: bool = False
    propagation: str = "rprivate"
    #: tmpfs only.
    size: int | None = None
    mode: int | None = None
    options: tuple[str, ...] = ()


class Port(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A published port.

    In a spec ``host_ip`` "" means the default publish addresses and ``host_port`` 0 a free one;
    once started (state.Attachment) both are literal, one Port per address.
    """

    container_port: int
    host_ip: str = ""
    host_port: int = 0
    protocol: Literal["tcp", "udp"] = "tcp"


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host device node passed in (``--device host[:inside[:rwm]]``)."""

    host_path: str
    path: str
    permissions: str = "rwm"


class Ulimit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A resource limit (setrlimit(2)); -1 is unlimited."""

    name: str
    soft: int
    hard: int


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    memory: int | None = None
    #: Memory plus swap; -1 is unlimited swap.
    memory_swap: int | None = None
    nano_cpus: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    pids_limit: int | None = None
    shm_size: int = 64 << 20
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[Device, ...] = ()


class Security(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only_root: bool = False
    no_new_privileges: bool = False
    #: "" the default profile, "unconfined", or the text of a profile in Docker's JSON form.
    seccomp: str = ""
    #: ``systempaths=unconfined``: no masked and no read-only paths.
    unmask: bool = False


class Restart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    policy: Literal["no", "always", "unless-stopped", "on-failure"] = "no"
    #: 0: no limit (on-failure only).
    max_retries: int = 0


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """HEALTHCHECK (OCI image-spec's Docker extension); durations in ns, 0 is Docker's default."""

    #: ``CMD`` and words, ``CMD-SHELL`` and a line, or ``NONE``.
    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    #: Between probes in the start period.
    start_interval: int = 0
    retries: int = 0
    #: The image's SHELL, which runs a line; () is ``/bin/sh -c``.
    shell: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of a probe; () when nothing is to be probed."""
        form, *words = self.test or ("NONE",)
        if form == "CMD-SHELL" and words:
            return (*(self.shell or ("/bin/sh", "-c")), *words)
        return tuple(words) if form == "CMD" else ()


class Log(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    driver: Literal["json-file", "none"] = "json-file"
    max_size: int = 10 << 20
    max_file: int = 3


class Network(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``mode`` is the name of a network; ``bridge``, ``none`` and ``host`` always exist."""

    mode: str = "bridge"
    hostname: str = ""
    domainname: str = ""
    ports: tuple[Port, ...] = ()
    #: container ports the image exposes, "80/tcp".
    exposed: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    #: ``name:address`` lines of --add-host.
    extra_hosts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    #: Claimed when created, kept for the workload's life.
    address: str = ""
    prefix: int = 0
    gateway: str = ""
    mac: str = ""


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that defines a workload; stored as ``workload.json`` beside its storage."""

    schema: int = SCHEMA
    id: str
    name: str
    backend: str
    #: Why this backend was chosen (``backend: auto``).
    backend_reason: str = ""
    #: As the user wrote it, normalised; and the config digest it resolved to.
    image: str
    image_id: str
    os: str = "linux"
    architecture: str = "amd64"
    created: int
    process: Process = Process()
    mounts: tuple[Mount, ...] = ()
    resources: Resources = Resources()
    security: Security = Security()
    network: Network = Network()
    restart: Restart = Restart()
    health: Health | None = None
    log: Log = Log()
    labels: dict[str, str] = {}
    metadata: dict[str, str] = {}
    sysctls: dict[str, str] = {}
    init: bool = False
    auto_remove: bool = False
    stop_signal: str = "SIGTERM"
    #: Seconds between the stop signal and KILL.
    stop_timeout: int = 10


def public(spec: WorkloadSpec) -> WorkloadSpec:
    """The spec without what may hold secrets: environment, command and health command."""
    replace = msgspec.structs.replace
    process = replace(spec.process, entrypoint=(), cmd=(), env=())
    health = replace(spec.health, test=()) if spec.health else None
    return replace(spec, process=process, health=health)
