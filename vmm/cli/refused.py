"""Docker's flags and commands that vmm knows but does not have: refused by name, with a way out.

Loaded only when one is used.
"""

from __future__ import annotations

_USE_CPUS = "use --cpus"
_USE_MEMORY = "use --memory and --memory-swap"
_NET = "workloads join one network: bridge, none or host"
_NS = "each workload has namespaces of its own"
_FETCH = "nothing is fetched; get images by vmm image bootstrap, vmm image import or vmm build"

_CREATE = {
    "--annotation": "use --label or --meta",
    "--blkio-weight": "block I/O limits are not supported",
    "--blkio-weight-device": "block I/O limits are not supported",
    "--cgroup-parent": "cgroups are placed by vmm",
    "--cgroupns": _NS,
    "--cpu-count": _USE_CPUS,
    "--cpu-percent": _USE_CPUS,
    "--cpu-period": _USE_CPUS,
    "--cpu-quota": _USE_CPUS,
    "--cpu-rt-period": _USE_CPUS,
    "--cpu-rt-runtime": _USE_CPUS,
    "--cpuset-mems": "memory nodes follow the host's; use --cpuset-cpus",
    "--device-cgroup-rule": "use --device",
    "--device-read-bps": "block I/O limits are not supported",
    "--device-read-iops": "block I/O limits are not supported",
    "--device-write-bps": "block I/O limits are not supported",
    "--device-write-iops": "block I/O limits are not supported",
    "--disable-content-trust": "there is no content trust; drop it",
    "--domainname": "give the domain with the host name: -h name.example.org",
    "--expose": "use -p, or EXPOSE in the Dockerfile",
    "--gpus": "GPUs are not supported; pass device nodes with --device",
    "--group-add": "supplementary groups come from the image's /etc/group",
    "--ip": "addresses are chosen by vmm; reach a workload by its name",
    "--ip6": "workloads have IPv4 addresses only",
    "--ipc": _NS,
    "--isolation": "it is for Windows only",
    "--kernel-memory": _USE_MEMORY,
    "--link": "workloads on the bridge reach each other by name without it",
    "--link-local-ip": _NET,
    "--mac-address": "addresses are chosen by vmm",
    "--memory-reservation": _USE_MEMORY,
    "--memory-swappiness": _USE_MEMORY,
    "--net-alias": _NET,
    "--network-alias": _NET,
    "--oom-kill-disable": _USE_MEMORY,
    "--oom-score-adj": "the score is the host's default",
    "--pid": _NS,
    "--platform": "only images of the host's platform are run",
    "--pull": _FETCH,
    "--quiet": _FETCH,
    "-q": _FETCH,
    "--runtime": "choose how a workload runs by --backend",
    "--storage-opt": "the writable layer has no quota",
    "--use-api-socket": "there is no API socket",
    "--userns": "user namespaces are not supported",
    "--uts": _NS,
    "--volume-driver": "volumes are local directories; drop it",
    "--volumes-from": "name the volumes with -v",
}

_BUILD_LATER = "not in this version"
_BUILD = {
    **dict.fromkeys(
        (
            "--add-host", "--allow", "--annotation", "--attest", "--build-context", "--builder",
            "--cache-from", "--cache-to", "--cgroup-parent", "--compress", "--cpu-period",
            "--cpu-quota", "--cpu-shares", "-c", "--cpuset-cpus", "--cpuset-mems",
            "--disable-content-trust", "--force-rm", "--iidfile", "--isolation", "--load",
            "--memory", "-m", "--memory-swap", "--metadata-file", "--no-cache-filter",
            "--output", "-o", "--progress", "--provenance", "--push", "--rm", "--sbom",
            "--secret", "--security-opt", "--shm-size", "--squash", "--ssh", "--stream",
            "--target", "--ulimit",
        ),
        _BUILD_LATER,
    ),
    "--platform": "images are built for the host's platform",
    "--pull": _FETCH,
}  # fmt: skip

FLAGS: dict[str, dict[str, str]] = {
    "run": _CREATE,
    "create": _CREATE,
    "build": _BUILD,
    "update": {
        **{name: _CREATE[name] for name in (
            "--blkio-weight", "--cpu-period", "--cpu-quota", "--cpu-rt-period",
            "--cpu-rt-runtime", "--cpuset-mems", "--kernel-memory", "--memory-reservation",
        )},
    },
    "start": {"--checkpoint": "checkpoints are not supported",
              "--checkpoint-dir": "checkpoints are not supported"},
    "logs": {"--details": "there are no log attributes"},
    "ps": {"--size": "see vmm system df", "-s": "see vmm system df"},
    "ls": {"--size": "see vmm system df", "-s": "see vmm system df",
           "--tree": "use vmm history"},
    "images": {"--tree": "use vmm history"},
    "inspect": {"--size": "see vmm system df", "-s": "see vmm system df"},
    "import": {"--platform": "images are of the host's platform"},
    "rm": {"--link": "there are no links", "-l": "there are no links"},
    "rmi": {"--no-prune": "layers are freed with the last image that needs them",
            "--platform": "images are of the host's platform"},
}  # fmt: skip

_LATER = "not in this version"
COMMANDS: dict[str, str] = {
    "pull": _FETCH,
    "push": "there is no registry client in this version",
    "login": "there is no registry client in this version",
    "logout": "there is no registry client in this version",
    "search": _FETCH,
    "load": "use vmm image import",
    "save": _LATER,
    "export": _LATER,
    "commit": "write a Dockerfile and use vmm build",
    "diff": _LATER,
    "events": "events are appended to events.jsonl below the instance's root",
    "compose": _LATER,
    "swarm": "vmm manages one host",
    "service": "vmm manages one host",
    "stack": "vmm manages one host",
    "node": "vmm manages one host",
    "secret": "vmm manages one host",
    "config": "settings are in /etc/vmm/config.yaml",
    "context": "choose an instance with --root",
    "plugin": _LATER,
    "buildx": "use vmm build",
    "builder": "use vmm build and vmm system prune",
    "manifest": _LATER,
    "trust": _LATER,
    "checkpoint": _LATER,
}


def flag(command: str, name: str) -> str | None:
    """Why ``name`` is refused by ``command``; None when Docker has no such flag either."""
    return FLAGS.get(command, {}).get(name)
