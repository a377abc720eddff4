"""A request and an image make a spec: pure, with Docker's rules of who wins."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.model.backend import HostFacts
from vmm.model.errors import UsageError
from vmm.model.image import ContainerConfig, Healthcheck, Image
from vmm.model.request import CreateRequest
from vmm.model.spec import Health, Log, Mount, Network, Port, Process, Resources, WorkloadSpec

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def resolve(
    request: CreateRequest,
    image: Image,
    *,
    workload: str,
    name: str,
    created: int,
    log: Log,
    stop_timeout: int,
    pids_limit: int,
    reference: str,
) -> WorkloadSpec:
    """The spec of a new workload. Raises UsageError for what the image cannot supply."""
    config = image.config.config
    resources = request.resources
    if resources.pids_limit is None:
        resources = _replace(resources, pids_limit=pids_limit)
    return WorkloadSpec(
        id=workload,
        name=name,
        backend=request.backend,
        image=reference,
        image_id=image.id,
        os=image.config.os,
        architecture=image.config.architecture,
        created=created,
        process=process(request, config),
        mounts=mounts(request.mounts, config),
        resources=resources,
        security=request.security,
        network=network(request, config, workload),
        restart=request.restart,
        health=_health(request.health, config),
        log=request.log or log,
        labels={**config.labels, **request.labels},
        metadata=request.metadata,
        sysctls=request.sysctls,
        init=request.init,
        auto_remove=request.auto_remove,
        stop_signal=request.stop_signal or config.stop_signal or "SIGTERM",
        stop_timeout=stop_timeout if request.stop_timeout is None else request.stop_timeout,
    )


def _replace(struct: Resources, **changes: object) -> Resources:
    import msgspec

    return msgspec.structs.replace(struct, **changes)


def clamp_defaults(spec: WorkloadSpec, request: CreateRequest, facts: HostFacts) -> WorkloadSpec:
    """Drop a default that this host cannot enforce; what was asked for stays, to be refused."""
    asked = request.resources.pids_limit is not None
    if asked or facts.limits_processes:
        return spec
    import msgspec

    resources = _replace(spec.resources, pids_limit=None)
    return msgspec.structs.replace(spec, resources=resources)


def process(request: CreateRequest, config: ContainerConfig) -> Process:
    """ENTRYPOINT and CMD: an entrypoint given by the caller clears the image's CMD."""
    if request.entrypoint is not None:
        entrypoint, cmd = request.entrypoint, request.command
    else:
        entrypoint = tuple(config.entrypoint or ())
        cmd = request.command or tuple(config.cmd or ())
    if not entrypoint + cmd:
        raise UsageError(
            f"No command specified, and image {request.image} has neither CMD nor ENTRYPOINT.",
            f"give one: vmm run {request.image} COMMAND",
        )
    return Process(
        entrypoint=entrypoint,
        cmd=cmd,
        env=merge_env(config.env, request.env),
        cwd=request.workdir or config.working_dir or "/",
        user=config.user if request.user is None else request.user,
        tty=request.tty,
        stdin_open=request.stdin_open,
        stdin_once=request.stdin_once,
    )


def merge_env(*layers: Iterable[str]) -> tuple[str, ...]:
    """KEY=VALUE lists, later ones win; the place of a key is where it was first set."""
    merged: dict[str, str] = {}
    for layer in layers:
        for item in layer:
            merged[item.partition("=")[0]] = item
    return tuple(merged.values())


def mounts(requested: tuple[Mount, ...], config: ContainerConfig) -> tuple[Mount, ...]:
    """The caller's mounts, and an anonymous volume for each VOLUME they do not cover."""
    targets: set[str] = set()
    for mount in requested:
        if mount.target in targets:
            raise UsageError(f"Duplicate mount point: {mount.target}", "mount it once")
        targets.add(mount.target)
    extra = (
        Mount(kind="volume", target=target.rstrip("/") or "/", anonymous=True)
        for target in sorted(config.volumes)
        if (target.rstrip("/") or "/") not in targets
    )
    return requested + tuple(extra)


def network(request: CreateRequest, config: ContainerConfig, workload: str) -> Network:
    """Ports, names and resolvers; the address is claimed later."""
    exposed = tuple(sorted(_with_protocol(port) for port in config.exposed_ports))
    ports = request.ports
    if request.publish_all:
        asked = {(p.container_port, p.protocol) for p in ports}
        ports += tuple(
            p for p in map(_port, exposed) if (p.container_port, p.protocol) not in asked
        )
    if ports and request.network == "none":
        raise UsageError(
            "ports cannot be published with --network none", "use --network bridge, or drop -p"
        )
    return Network(
        mode=request.network,
        hostname=request.hostname or workload[:12],
        ports=() if request.network == "host" else ports,
        exposed=exposed,
        dns=request.dns,
        dns_search=request.dns_search,
        dns_options=request.dns_options,
        extra_hosts=request.extra_hosts,
    )


def _with_protocol(port: str) -> str:
    return port if "/" in port else f"{port}/tcp"


def _port(exposed: str) -> Port:
    number, _, protocol = exposed.partition("/")
    return Port(container_port=int(number), protocol="udp" if protocol == "udp" else "tcp")


def _health(asked: Health | None, config: ContainerConfig) -> Health | None:
    """Each value that was asked for in place of the image's."""
    check = config.healthcheck or Healthcheck()
    if asked is None and not check.test:
        return None
    wanted = asked or Health()
    return Health(
        test=wanted.test or tuple(check.test),
        interval=wanted.interval or check.interval,
        timeout=wanted.timeout or check.timeout,
        start_period=wanted.start_period or check.start_period,
        start_interval=wanted.start_interval or check.start_interval,
        retries=wanted.retries or check.retries,
        shell=tuple(config.shell or ()),
    )
