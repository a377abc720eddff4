"""The options of ``run`` and ``create``: docker-run(1)'s names and help."""

from __future__ import annotations

from typing import Annotated

import typer

from vmm.cli.groups import Options

Texts = list[str] | None


class CreateOptions(Options):
    """What ``create`` takes, and ``run`` too."""

    add_host: Annotated[
        Texts,
        typer.Option("--add-host", metavar="list", help="Add a host-to-IP mapping (host:ip)"),
    ] = None
    attach: Annotated[
        Texts,
        typer.Option("--attach", "-a", metavar="list", help="Attach to STDIN, STDOUT or STDERR"),
    ] = None
    backend: Annotated[
        str, typer.Option("--backend", help="What runs it: auto, container, vm, kvm, qemu")
    ] = "auto"
    cap_add: Annotated[
        Texts, typer.Option("--cap-add", metavar="list", help="Add Linux capabilities")
    ] = None
    cap_drop: Annotated[
        Texts, typer.Option("--cap-drop", metavar="list", help="Drop Linux capabilities")
    ] = None
    cidfile: Annotated[
        str, typer.Option("--cidfile", help="Write the workload's ID to the file")
    ] = ""
    cpu_shares: Annotated[
        str | None,
        typer.Option("--cpu-shares", "-c", metavar="int", help="CPU shares (relative weight)"),
    ] = None
    cpus: Annotated[
        str | None, typer.Option("--cpus", metavar="decimal", help="Number of CPUs")
    ] = None
    cpuset_cpus: Annotated[
        str, typer.Option("--cpuset-cpus", help="CPUs in which to allow execution (0-3, 0,1)")
    ] = ""
    device: Annotated[Texts, typer.Option("--device", metavar="list", help="Add a host device")] = (
        None
    )
    dns: Annotated[Texts, typer.Option("--dns", metavar="list", help="Set custom DNS servers")] = (
        None
    )
    dns_option: Annotated[
        Texts,
        typer.Option("--dns-option", "--dns-opt", metavar="list", help="Set DNS options"),
    ] = None
    dns_search: Annotated[
        Texts, typer.Option("--dns-search", metavar="list", help="Set custom DNS search domains")
    ] = None
    entrypoint: Annotated[
        str | None,
        typer.Option("--entrypoint", help="Overwrite the default ENTRYPOINT of the image"),
    ] = None
    env: Annotated[
        Texts, typer.Option("--env", "-e", metavar="list", help="Set environment variables")
    ] = None
    env_file: Annotated[
        Texts,
        typer.Option("--env-file", metavar="list", help="Read in a file of environment variables"),
    ] = None
    health_cmd: Annotated[
        str, typer.Option("--health-cmd", help="Command to run to check health")
    ] = ""
    health_interval: Annotated[
        str | None,
        typer.Option(
            "--health-interval", metavar="duration", help="Time between checks (default 30s)"
        ),
    ] = None
    health_retries: Annotated[
        str | None,
        typer.Option(
            "--health-retries",
            metavar="int",
            help="Consecutive failures needed to report unhealthy (default 3)",
        ),
    ] = None
    health_start_interval: Annotated[
        str | None,
        typer.Option(
            "--health-start-interval",
            metavar="duration",
            help="Time between checks during the start period (default 5s)",
        ),
    ] = None
    health_start_period: Annotated[
        str | None,
        typer.Option(
            "--health-start-period",
            metavar="duration",
            help="Time to initialize before failures count (default 0s)",
        ),
    ] = None
    health_timeout: Annotated[
        str | None,
        typer.Option(
            "--health-timeout", metavar="duration", help="Longest time of one check (default 30s)"
        ),
    ] = None
    hostname: Annotated[
        str, typer.Option("--hostname", "-h", help="Host name (with its domain, if any)")
    ] = ""
    init: Annotated[
        bool,
        typer.Option("--init", help="Run an init that forwards signals and reaps processes"),
    ] = False
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Keep STDIN open even if not attached")
    ] = False
    label: Annotated[Texts, typer.Option("--label", "-l", metavar="list", help="Set labels")] = None
    label_file: Annotated[
        Texts, typer.Option("--label-file", metavar="list", help="Read in a file of labels")
    ] = None
    log_driver: Annotated[
        str, typer.Option("--log-driver", help="Logging driver: json-file or none")
    ] = ""
    log_opt: Annotated[
        Texts,
        typer.Option("--log-opt", metavar="list", help="Log options: max-size, max-file"),
    ] = None
    memory: Annotated[
        str | None, typer.Option("--memory", "-m", metavar="bytes", help="Memory limit")
    ] = None
    memory_swap: Annotated[
        str | None,
        typer.Option("--memory-swap", metavar="bytes", help="Memory plus swap; -1: unlimited swap"),
    ] = None
    meta: Annotated[
        Texts,
        typer.Option("--meta", metavar="list", help="Metadata kept with the storage (key=value)"),
    ] = None
    mount: Annotated[
        Texts, typer.Option("--mount", metavar="mount", help="Attach a file system mount")
    ] = None
    name: Annotated[str, typer.Option("--name", help="Assign a name")] = ""
    network: Annotated[
        str,
        typer.Option("--network", "--net", help="Network: bridge, none, host (default bridge)"),
    ] = "bridge"
    no_healthcheck: Annotated[
        bool, typer.Option("--no-healthcheck", help="Disable any HEALTHCHECK of the image")
    ] = False
    pids_limit: Annotated[
        str | None,
        typer.Option("--pids-limit", metavar="int", help="Limit of processes; -1: unlimited"),
    ] = None
    privileged: Annotated[bool, typer.Option("--privileged", help="Give extended privileges")] = (
        False
    )
    publish: Annotated[
        Texts,
        typer.Option("--publish", "-p", metavar="list", help="Publish ports to the host"),
    ] = None
    publish_all: Annotated[
        bool,
        typer.Option("--publish-all", "-P", help="Publish all exposed ports to free ports"),
    ] = False
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Mount the root file system read-only")
    ] = False
    restart: Annotated[
        str,
        typer.Option("--restart", help="no, always, unless-stopped, on-failure[:max] (default no)"),
    ] = ""
    rm: Annotated[
        bool, typer.Option("--rm", help="Remove the workload and its anonymous volumes at its end")
    ] = False
    security_opt: Annotated[
        Texts, typer.Option("--security-opt", metavar="list", help="Security options")
    ] = None
    shm_size: Annotated[
        str | None,
        typer.Option("--shm-size", metavar="bytes", help="Size of /dev/shm (default 64m)"),
    ] = None
    stop_signal: Annotated[
        str | None, typer.Option("--stop-signal", help="Signal to stop the workload")
    ] = None
    stop_timeout: Annotated[
        str | None,
        typer.Option("--stop-timeout", metavar="int", help="Seconds from that signal to KILL"),
    ] = None
    sysctl: Annotated[Texts, typer.Option("--sysctl", metavar="map", help="Sysctl options")] = None
    tmpfs: Annotated[
        Texts, typer.Option("--tmpfs", metavar="list", help="Mount a tmpfs directory")
    ] = None
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Allocate a pseudo-TTY")] = False
    ulimit: Annotated[Texts, typer.Option("--ulimit", metavar="list", help="Ulimit options")] = None
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", help="Username or UID (format: <name|uid>[:<group|gid>])"),
    ] = None
    volume: Annotated[
        Texts, typer.Option("--volume", "-v", metavar="list", help="Bind mount a volume")
    ] = None
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", help="Working directory inside")
    ] = None


class RunOptions(CreateOptions):
    """What only ``run`` takes."""

    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in background and print the workload's ID")
    ] = False
    detach_keys: Annotated[
        str | None, typer.Option("--detach-keys", help="Keys that detach (ctrl-p,ctrl-q)")
    ] = None
    sig_proxy: Annotated[
        bool,
        typer.Option("--sig-proxy/--no-sig-proxy", help="Proxy signals to the process"),
    ] = True
