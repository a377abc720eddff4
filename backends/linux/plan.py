"""compile(): a workload as the launch plan of the native core (native/LAUNCH.md). Pure."""

from __future__ import annotations

from vmm.backends.linux import capabilities, cgroups, health, mounts, process
from vmm.model import signals
from vmm.model.backend import CompileInput, ExecInput
from vmm.model.errors import UsageError
from vmm.model.launch import LaunchPlan, Op, encode_ops, op
from vmm.model.spec import Security
from vmm.model.state import HEALTH_LOG

#: The workload's end of its network link.
INTERFACE = "eth0"


def compile_plan(given: CompileInput) -> LaunchPlan:
    """The whole plan of a workload."""
    return LaunchPlan(tuple(_shim(given)), tuple(_host(given)), tuple(_child(given)))


def compile_exec(given: CompileInput, request: ExecInput) -> bytes:
    """A further process: the workload's limits, filter and capabilities, its own user."""
    import msgspec

    _need_command(request.argv)
    security = given.spec.security
    if request.privileged:
        security = msgspec.structs.replace(security, privileged=True)
    env = process.environment(given.spec, request.user, request.tty, request.env)
    cwd = op("cwd", mounts.normal(request.cwd or given.spec.process.cwd or "/"), "must")
    return encode_ops(
        [
            *process.prepare(given, env, cwd),
            *process.confine(given, request.user, security),
            op("exec", *request.argv),
        ]
    )


def compile_archive(given: CompileInput, direction: str, path: str, follow: bool) -> bytes:
    """A process that copies files out of ("get") or into ("put") a running workload."""
    return encode_ops(_archive(given, direction, path, follow))


def archive_plan(given: CompileInput) -> LaunchPlan:
    """The root and the mounts of a workload that does not run, for such processes: its own one
    waits for the end of its input, of which nothing else comes."""
    child = [*_surroundings(given), *_archive(given, "put", "/", False)]
    return LaunchPlan(tuple(_shim(given)), tuple(_host(given)), tuple(child))


def _archive(given: CompileInput, direction: str, path: str, follow: bool) -> list[Op]:
    """As root with the capabilities that any workload has, and nothing of the image's running.

    Paths keep a slash at their end, which only a directory bears.
    """
    sets = capabilities.sets_for(Security(), given.host, 0)
    last = op("archive.get", path, int(follow)) if direction == "get" else op("archive.put", path)
    return [
        op("umask", "0022"),
        op("cwd", "/", "must"),
        op("groups"),
        op("user", 0, 0),
        op("caps", *sets.hexadecimal()),
        last,
    ]


def _need_command(argv: tuple[str, ...]) -> None:
    if not argv or not argv[0]:
        raise UsageError("no command specified", "give a command, or an image that has one")


def _shim(given: CompileInput) -> list[Op]:
    """How the process is kept."""
    spec, paths = given.spec, given.paths
    keep = spec.process
    timeout = spec.stop_timeout * 1000 if spec.stop_timeout >= 0 else -1
    ops = [
        op("id", spec.id),
        op("run-dir", paths.run),
        op("state", paths.state),
        op("exec-dir", f"{paths.directory}/exec"),
        op("events", paths.events),
        op("event-attrs", *_attributes(given)),
        _log(given),
        op("stdio", int(keep.tty), int(keep.stdin_open), int(keep.stdin_once)),
        op("restart", spec.restart.policy, spec.restart.max_retries),
        op("stop", signals.number(spec.stop_signal), timeout),
        *_health(given),
    ]
    if given.reaper:
        ops.append(op("reaper", *given.reaper))
    ops += _relay(given.relay)
    ops.append(op("wait-start", 1))
    if given.boot_id:
        ops.append(op("boot-id", given.boot_id))
    return ops


def _attributes(given: CompileInput) -> list[str]:
    spec = given.spec
    labels = [f"{key}={value}" for key, value in sorted(spec.labels.items())]
    return [*labels, f"image={spec.image}", f"name={spec.name}"]


def _log(given: CompileInput) -> Op:
    log = given.spec.log
    if log.driver == "none":
        return op("log", "none")
    return op("log", "json-file", given.paths.log, log.max_size, log.max_file)


def _health(given: CompileInput) -> list[Op]:
    """A probe runs as an exec without options does."""
    spec, check = given.spec, given.spec.health
    if check is None or not check.argv:
        return []
    asked = ExecInput(argv=check.argv, env=(), cwd=spec.process.cwd, user=given.user)
    log = f"{given.paths.directory}/{HEALTH_LOG}"
    return [health.operation(check, log, compile_exec(given, asked))]


def _relay(argv: tuple[str, ...]) -> list[Op]:
    """The relay and the sockets it inherits: each argument is ``FD,protocol,…``."""
    if not argv:
        return []
    descriptors = [argument.partition(",")[0] for argument in argv[1:]]
    numbers = [text for text in descriptors if text.isdigit()]
    return [op("helper", *argv), *([op("helper-fds", *numbers)] if numbers else [])]


def _host(given: CompileInput) -> list[Op]:
    """Outside: namespaces, control groups, the network link."""
    own_network = given.spec.network.mode != "host"
    kinds = ["pid", "mount", "uts", "ipc", *(["net"] if own_network else []), "cgroup"]
    ops = [op("ns.new", *kinds), *cgroups.operations(given), op("oom-score", 0)]
    if own_network:
        ops += _network(given)
    return ops


def _network(given: CompileInput) -> list[Op]:
    ops = [op("net.loopback")]
    end = given.endpoint
    if end is None:
        return ops
    return [
        *ops,
        op("net.veth", end.link, end.bridge, INTERFACE, end.mac, end.mtu),
        op("net.address", INTERFACE, f"{end.address}/{end.prefix}"),
        op("net.up", INTERFACE),
        *([op("net.route", end.gateway)] if end.gateway else []),
        op("stats", "net", end.link),
    ]


def _child(given: CompileInput) -> list[Op]:
    """Inside, in order."""
    spec = given.spec
    _need_command(spec.process.argv)
    env = process.environment(spec, given.user, spec.process.tty)
    cwd = op("cwd", mounts.normal(spec.process.cwd or "/"), "create")
    ops = [
        *_surroundings(given),
        *process.prepare(given, env, cwd),
        *process.confine(given, given.user, spec.security),
    ]
    if spec.init:
        ops.append(op("init", f"{given.paths.libexec}/vmm-init"))
    return [*ops, op("exec", *spec.process.argv)]


def _surroundings(given: CompileInput) -> list[Op]:
    """The file systems, the kernel's switches, the names."""
    return [
        *mounts.root(given),
        *mounts.operations(given),
        *_sysctls(given),
        *mounts.restrictions(given),
        op("root.pivot"),
        *([op("root.readonly")] if given.spec.security.read_only_root else []),
        *_names(given),
    ]


def _names(given: CompileInput) -> list[Op]:
    ops = []
    if name := process.hostname(given.spec):
        ops.append(op("hostname", name))
    if domain := given.spec.network.domainname:
        ops.append(op("domainname", domain))
    return ops


#: Docker's: in a network stack of its own there is nothing to protect low ports or ping from.
_NETWORK_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


def _sysctls(given: CompileInput) -> list[Op]:
    spec = given.spec
    values = {} if spec.network.mode == "host" else dict(_NETWORK_SYSCTLS)
    values.update(spec.sysctls)
    return [op("sysctl", key, value) for key, value in values.items()]
