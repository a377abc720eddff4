"""Workloads as Docker shows them: pure functions from spec and state to plain dicts.

Field names and shapes are those of the Docker Engine API (GET /containers/json and
/containers/{id}/json); ``Backend``, ``BackendReason`` and ``Metadata`` are vmm's own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import msgspec

from vmm.model import human
from vmm.model.backend import Endpoint, WorkloadPaths
from vmm.model.errors import UsageError
from vmm.model.ids import short
from vmm.model.image import Healthcheck
from vmm.model.spec import Health, Mount, Port, WorkloadSpec
from vmm.model.state import Probe, State

View = dict[str, Any]


class WorkloadView(msgspec.Struct, frozen=True, kw_only=True):
    """A workload, its state, and where its files and addresses are."""

    spec: WorkloadSpec
    state: State
    paths: WorkloadPaths
    endpoint: Endpoint | None = None
    #: Bound ports of a running workload, one per address.
    ports: tuple[Port, ...] = ()
    volumes_root: str = ""
    network_id: str = ""
    #: What its root is made of (vmm.model.backend, RootLayout.driver), for inspect.
    storage: str = ""
    #: What the last health probes found.
    probes: tuple[Probe, ...] = ()


def status_text(state: State, now: int) -> str:
    """``Up 5 minutes``, ``Exited (0) 3 seconds ago``."""
    if state.status == "running":
        return f"Up {human.duration(now - state.started)}{_health_text(state)}"
    if state.status == "paused":
        return f"Up {human.duration(now - state.started)} (Paused)"
    if state.status in {"exited", "restarting"}:
        word = state.status.capitalize()
        return f"{word} ({state.exit_code}) {human.ago(state.finished or now, now)}"
    return state.status.capitalize()


def _health_text(state: State) -> str:
    words = {"": "", "starting": " (health: starting)"}
    return words.get(state.health, f" ({state.health})")


def command_text(spec: WorkloadSpec) -> str:
    """The command line, words with blanks quoted."""
    return " ".join(shlex.quote(a) if " " in a or not a else a for a in spec.process.argv)


def ports_text(view: WorkloadView) -> str:
    """``127.0.0.1:8080->80/tcp, 443/tcp``; neighbouring ports as a range."""
    bound = sorted(view.ports, key=_port_order)
    shown = []
    for _, run in groupby(enumerate(bound), key=lambda item: _run_key(*item)):
        ports = [port for _, port in run]
        address = f"[{ports[0].host_ip}]" if ":" in ports[0].host_ip else ports[0].host_ip
        outside = _span([p.host_port for p in ports])
        inside = _span([p.container_port for p in ports])
        shown.append(f"{address}:{outside}->{inside}/{ports[0].protocol}")
    taken = {f"{p.container_port}/{p.protocol}" for p in bound}
    if view.state.status in {"running", "paused"} and view.spec.network.mode == "bridge":
        shown += [port for port in view.spec.network.exposed if port not in taken]
    return ", ".join(shown)


def _port_order(port: Port) -> tuple[bool, str, str, int, int]:
    return (":" in port.host_ip, port.host_ip, port.protocol, port.container_port, port.host_port)


def _run_key(position: int, port: Port) -> tuple[str, str, int, int]:
    """Equal for ports that follow each other."""
    inside, outside = port.container_port - position, port.host_port - position
    return (port.host_ip, port.protocol, inside, outside)


def _span(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first}-{last}"


def ps_row(view: WorkloadView, now: int, *, truncate: bool = True) -> View:
    """The fields of ``vmm ps --format``."""
    from vmm.model.gotext import Labelled

    spec, state = view.spec, view.state
    command = command_text(spec)
    if truncate and len(command) > 20:
        command = command[:19] + "…"
    volumes = [m for m in spec.mounts if m.kind == "volume"]
    mounts = [_mount_name(m, truncate) for m in spec.mounts if m.kind != "tmpfs"]
    fields = {
        "ID": short(spec.id) if truncate else spec.id,
        "Names": spec.name,
        "Image": spec.image,
        "Command": f'"{command}"',
        "CreatedAt": human.local(spec.created),
        "RunningFor": human.ago(spec.created, now),
        "Ports": ports_text(view),
        "State": state.status,
        "Status": status_text(state, now),
        "Labels": ",".join(f"{k}={v}" for k, v in sorted(spec.labels.items())),
        "LocalVolumes": str(len(volumes)),
        "Mounts": ",".join(mounts),
        "Networks": spec.network.mode,
        "Backend": spec.backend,
    }
    return Labelled(fields, spec.labels)


def _mount_name(mount: Mount, truncate: bool) -> str:
    name = mount.source
    return name[:14] + "…" if truncate and len(name) > 15 else name


FILTERS = frozenset(
    {
        "id", "name", "label", "status", "exited", "ancestor", "volume", "network", "health",
        "backend",
    }
)  # fmt: skip
#: Filters that take one of a few values.
_VALUES = {
    "status": frozenset({"created", "restarting", "running", "paused", "exited", "dead"}),
    "health": frozenset({"none", "starting", "healthy", "unhealthy"}),
}


def parse_filters(items: Iterable[str], known: frozenset[str] = FILTERS) -> dict[str, list[str]]:
    """``key=value`` filters by key."""
    filters: dict[str, list[str]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip().lower()
        if not equals:
            raise UsageError(f"invalid filter {item!r:.80}", "use --filter KEY=VALUE")
        if key not in known:
            raise UsageError(f"invalid filter '{key:.80}'", "known: " + ", ".join(sorted(known)))
        if value not in (choice := _VALUES.get(key, {value})):
            raise UsageError(
                f"invalid filter '{key}={value:.80}'", "use one of " + ", ".join(sorted(choice))
            )
        filters.setdefault(key, []).append(value)
    return filters


def matches(view: WorkloadView, filters: Mapping[str, Sequence[str]]) -> bool:
    """Whether the workload passes: any value of each key, every value of ``label``."""
    return all(
        (all if key == "label" else any)(_matches_one(view, key, value) for value in values)
        for key, values in filters.items()
    )


def _matches_one(view: WorkloadView, key: str, value: str) -> bool:
    spec = view.spec
    if key == "label":
        name, equals, wanted = value.partition("=")
        return name in spec.labels and (not equals or spec.labels[name] == wanted)
    if key == "name":
        return _name_matches(spec.name, value)
    if key == "exited":
        return view.state.status == "exited" and str(view.state.exit_code) == value
    if key == "ancestor":
        plain = value.removeprefix("sha256:")
        by_id = len(plain) >= 12 and spec.image_id.removeprefix("sha256:").startswith(plain)
        return by_id or spec.image in {value, f"{value}:latest"}
    if key == "volume":
        return any(value in {m.source, m.target} for m in spec.mounts)
    tests = {
        "id": spec.id.startswith(value),
        "status": view.state.status == value,
        "network": spec.network.mode == value,
        "health": (view.state.health or "none") == value,
        "backend": spec.backend == value,
    }
    return tests[key]


def _name_matches(name: str, pattern: str) -> bool:
    """A regular expression, found in the name with or without Docker's leading slash."""
    import re

    try:
        return any(re.search(pattern, text) for text in (name, f"/{name}"))
    except re.error as error:
        raise UsageError(
            f"invalid filter 'name={pattern:.80}': {error}", "give a name or a regular expression"
        ) from None


def state_view(state: State, probes: Iterable[Probe] = ()) -> View:
    """``State`` of inspect."""
    return {
        "Status": state.status,
        "Running": state.status in {"running", "paused"},
        "Paused": state.status == "paused",
        "Restarting": state.status == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": state.status == "dead",
        "Pid": state.pid if state.status in {"running", "paused"} else 0,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": human.rfc3339(state.started),
        "FinishedAt": human.rfc3339(state.finished),
        **({"Health": _health_state(state, probes)} if state.health else {}),
    }


def _health_state(state: State, probes: Iterable[Probe]) -> View:
    log = [
        {
            "Start": human.rfc3339(probe.start),
            "End": human.rfc3339(probe.end),
            "ExitCode": probe.exit_code,
            "Output": probe.output,
        }
        for probe in probes
    ]
    return {"Status": state.health, "FailingStreak": state.failing_streak, "Log": log}


def inspect(view: WorkloadView) -> View:
    """The workload as ``docker inspect`` shows a container."""
    spec, paths = view.spec, view.paths
    argv = spec.process.argv
    return {
        "Id": spec.id,
        "Created": human.rfc3339(spec.created),
        "Path": argv[0] if argv else "",
        "Args": list(argv[1:]),
        "State": state_view(view.state, view.probes),
        "Image": spec.image_id,
        "ResolvConfPath": paths.resolv_conf,
        "HostnamePath": paths.hostname,
        "HostsPath": paths.hosts,
        "LogPath": paths.log if spec.log.driver == "json-file" else "",
        "Name": f"/{spec.name}",
        "RestartCount": view.state.restart_count,
        "Driver": view.storage,
        "Platform": spec.os,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": host_config(spec),
        "GraphDriver": {"Name": view.storage, "Data": storage_view(view)},
        "Mounts": [mount_view(m, view.volumes_root) for m in spec.mounts if m.kind != "tmpfs"],
        "Config": config_view(spec),
        "NetworkSettings": network_view(view),
        "Backend": spec.backend,
        "BackendReason": spec.backend_reason,
        "Metadata": dict(spec.metadata),
    }


def storage_view(view: WorkloadView) -> View:
    """``GraphDriver.Data`` of inspect: where what it writes is kept."""
    directory = view.paths.directory
    if view.storage == "disk":
        return {"Disk": f"{directory}/disk.raw"}
    return {"UpperDir": f"{directory}/upper"}


def config_view(spec: WorkloadSpec) -> View:
    """``Config`` of inspect: what the image and the caller agreed on."""
    process = spec.process
    exposed = {*spec.network.exposed, *(_key(p) for p in spec.network.ports)}
    return {
        "Hostname": spec.network.hostname,
        "Domainname": spec.network.domainname,
        "User": process.user,
        "AttachStdin": process.stdin_once,
        "AttachStdout": process.stdin_once,
        "AttachStderr": process.stdin_once,
        "ExposedPorts": {port: {} for port in sorted(exposed)},
        "Tty": process.tty,
        "OpenStdin": process.stdin_open,
        "StdinOnce": process.stdin_once,
        "Env": list(process.env),
        "Cmd": list(process.cmd) or None,
        "Image": spec.image,
        "Volumes": {m.target: {} for m in spec.mounts if m.kind == "volume"} or None,
        "WorkingDir": process.cwd,
        "Entrypoint": list(process.entrypoint) or None,
        "OnBuild": None,
        "Labels": dict(spec.labels),
        "StopSignal": spec.stop_signal,
        "StopTimeout": spec.stop_timeout,
        **({"Healthcheck": health_view(spec.health)} if spec.health else {}),
    }


def health_view(check: Health | Healthcheck) -> View:
    """``Healthcheck`` of inspect, of workloads and images: what is not said is left out."""
    fields = {
        "Test": list(check.test),
        "Interval": check.interval,
        "Timeout": check.timeout,
        "StartPeriod": check.start_period,
        "StartInterval": check.start_interval,
        "Retries": check.retries,
    }
    return {name: value for name, value in fields.items() if value}


def _key(port: Port) -> str:
    return f"{port.container_port}/{port.protocol}"


def host_config(spec: WorkloadSpec) -> View:
    """``HostConfig`` of inspect."""
    network, restart = spec.network, spec.restart
    return {
        "Binds": [_bind(m) for m in spec.mounts if m.kind != "tmpfs" and m.source] or None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": spec.log.driver, "Config": _log_options(spec)},
        "NetworkMode": network.mode,
        "PortBindings": bindings(network.ports),
        "RestartPolicy": {"Name": restart.policy, "MaximumRetryCount": restart.max_retries},
        "AutoRemove": spec.auto_remove,
        "Dns": list(network.dns),
        "DnsOptions": list(network.dns_options),
        "DnsSearch": list(network.dns_search),
        "ExtraHosts": list(network.extra_hosts) or None,
        "Init": spec.init,
        "Sysctls": dict(spec.sysctls),
        "Tmpfs": {m.target: _tmpfs_options(m) for m in spec.mounts if m.kind == "tmpfs"},
        **_resources(spec),
        **_security(spec),
    }


def _resources(spec: WorkloadSpec) -> View:
    resources = spec.resources
    limits = [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in resources.ulimits]
    devices = [
        {"PathOnHost": d.host_path, "PathInContainer": d.path, "CgroupPermissions": d.permissions}
        for d in resources.devices
    ]
    return {
        "ShmSize": resources.shm_size,
        "Memory": resources.memory or 0,
        "MemorySwap": resources.memory_swap or 0,
        "NanoCpus": resources.nano_cpus or 0,
        "CpuShares": resources.cpu_shares or 0,
        "CpusetCpus": resources.cpuset_cpus,
        "PidsLimit": resources.pids_limit,
        "Ulimits": limits,
        "Devices": devices,
    }


def _security(spec: WorkloadSpec) -> View:
    security = spec.security
    options = []
    if security.no_new_privileges:
        options.append("no-new-privileges")
    if security.seccomp:
        options.append(f"seccomp={security.seccomp}")
    if security.unmask:
        options.append("systempaths=unconfined")
    return {
        "Privileged": security.privileged,
        "ReadonlyRootfs": security.read_only_root,
        "CapAdd": list(security.cap_add) or None,
        "CapDrop": list(security.cap_drop) or None,
        "SecurityOpt": options or None,
    }


def _log_options(spec: WorkloadSpec) -> dict[str, str]:
    if spec.log.driver != "json-file":
        return {}
    return {"max-size": str(spec.log.max_size), "max-file": str(spec.log.max_file)}


def _bind(mount: Mount) -> str:
    mode = ":ro" if mount.read_only else ""
    return f"{mount.source}:{mount.target}{mode}"


def _tmpfs_options(mount: Mount) -> str:
    words = list(mount.options)
    if mount.read_only:
        words.append("ro")
    if mount.size is not None:
        words.append(f"size={mount.size}")
    if mount.mode is not None:
        words.append(f"mode={mount.mode:o}")
    return ",".join(words)


def bindings(ports: Iterable[Port]) -> dict[str, list[dict[str, str]]]:
    """Ports by container port: ``{"80/tcp": [{"HostIp": …, "HostPort": …}]}``."""
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        outside = str(port.host_port) if port.host_port else ""
        found.setdefault(_key(port), []).append({"HostIp": port.host_ip, "HostPort": outside})
    return found


def mount_view(mount: Mount, volumes_root: str) -> View:
    """One of ``Mounts`` of inspect."""
    shown = {
        "Type": mount.kind,
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": "ro" if mount.read_only else "",
        "RW": not mount.read_only,
        "Propagation": mount.propagation if mount.kind == "bind" else "",
    }
    if mount.kind == "volume":
        source = f"{volumes_root}/{mount.source}/_data"
        shown |= {"Name": mount.source, "Source": source, "Driver": "local"}
    return shown


def network_view(view: WorkloadView) -> View:
    """``NetworkSettings`` of inspect; addresses are shown while the workload runs."""
    spec, endpoint = view.spec, view.endpoint
    ports: dict[str, Any] = {}
    if view.state.status in {"running", "paused"}:
        ports = {**dict.fromkeys(spec.network.exposed), **bindings(view.ports)}
    address = {
        "IPAddress": endpoint.address if endpoint else "",
        "IPPrefixLen": endpoint.prefix if endpoint else 0,
        "Gateway": endpoint.gateway if endpoint else "",
        "MacAddress": endpoint.mac if endpoint else "",
    }
    attached = {
        "Aliases": list(spec.network.aliases) or None,
        "NetworkID": view.network_id if spec.network.mode == "bridge" else "",
        "EndpointID": endpoint.link if endpoint else "",
        "DNSNames": [spec.name, short(spec.id)],
        **address,
    }
    return {
        "Bridge": endpoint.bridge if endpoint else "",
        "Ports": ports,
        **address,
        "Networks": {spec.network.mode: attached},
    }


def port_lines(view: WorkloadView) -> list[tuple[str, str]]:
    """Pairs of ``80/tcp`` and ``127.0.0.1:8080``."""
    lines = []
    for port in sorted(view.ports, key=lambda p: (p.container_port, p.protocol, p.host_ip)):
        address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
        lines.append((_key(port), f"{address}:{port.host_port}"))
    return lines
