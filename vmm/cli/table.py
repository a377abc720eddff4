"""Every command, as data: help and completion list them without importing any."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A command; ``target`` is ``module:function`` below vmm.cli, loaded when it is used."""

    name: str
    target: str
    #: What follows the options on the usage line.
    usage: str
    summary: str
    #: All that follows the first argument belongs to it.
    greedy: bool = False
    #: Exit code of errors that are not the workload's.
    failure: int = 1
    hidden: bool = False


def entries(*rows: Entry) -> dict[str, Entry]:
    return {row.name: row for row in rows}


_ONE = "CONTAINER"
_MANY = "CONTAINER [CONTAINER...]"

CONTAINER = entries(
    Entry("run", "run:run", "IMAGE [COMMAND] [ARG...]",
          "Create and run a new workload from an image", greedy=True, failure=125),
    Entry("create", "run:create", "IMAGE [COMMAND] [ARG...]",
          "Create a new workload without starting it", greedy=True, failure=125),
    Entry("exec", "execute:exec_", f"{_ONE} COMMAND [ARG...]",
          "Run a command in a running workload", greedy=True),
    Entry("start", "lifecycle:start", _MANY, "Start one or more stopped workloads"),
    Entry("stop", "lifecycle:stop", _MANY, "Stop one or more running workloads"),
    Entry("restart", "lifecycle:restart", _MANY, "Restart one or more workloads"),
    Entry("kill", "lifecycle:kill", _MANY, "Kill one or more running workloads"),
    Entry("rm", "lifecycle:rm", _MANY, "Remove one or more workloads"),
    Entry("rename", "lifecycle:rename", f"{_ONE} NEW_NAME", "Rename a workload"),
    Entry("wait", "lifecycle:wait", _MANY,
          "Block until workloads stop, then print their exit codes"),
    Entry("ps", "listing:ps", "", "List workloads"),
    Entry("attach", "execute:attach", _ONE, "Attach to a running workload's streams"),
    Entry("console", "execute:console", _ONE, "Connect to the serial console of a virtual machine"),
    Entry("logs", "logs:logs", _ONE, "Show the logs of a workload"),
    Entry("pause", "pause:pause", _MANY, "Pause all processes of one or more workloads"),
    Entry("unpause", "pause:unpause", _MANY,
          "Let all processes of one or more paused workloads go on"),
    Entry("top", "top:top", f"{_ONE} [OPTION...]",
          "Display the running processes of a workload", greedy=True),
    Entry("stats", "stats:stats", f"[{_ONE}...]", "Display what workloads use"),
    Entry("update", "update:update", _MANY, "Update the limits of one or more workloads"),
    Entry("cp", "copy:copy", f"{_ONE}:SRC_PATH DEST_PATH|-",
          "Copy files between a workload and the host"),
    Entry("port", "listing:port", f"{_ONE} [PORT[/PROTOCOL]]",
          "List the published ports of a workload"),
)  # fmt: skip

TOP = CONTAINER | entries(
    Entry("build", "build:build", "PATH", "Build an image from a Dockerfile"),
    Entry("images", "images:images", "[REPOSITORY[:TAG]]", "List images"),
    Entry("rmi", "images:rmi", "IMAGE [IMAGE...]", "Remove one or more images"),
    Entry("tag", "images:tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
          "Give an image another reference"),
    Entry("history", "images:history", "IMAGE", "Show the history of an image"),
    Entry("import", "images:import_", "FILE|- [REPOSITORY[:TAG]]",
          "Make an image of a root file system in a tar archive"),
    Entry("inspect", "inspection:inspect", "NAME|ID [NAME|ID...]",
          "Show workloads, images, volumes and networks as JSON"),
    Entry("explain", "explain:explain", _ONE,
          "Print what the backend makes of a workload"),
    Entry("backends", "explain:backends", "", "List what each backend can do on this host"),
    Entry("info", "system:info", "", "Show the instance and the host"),
    Entry("version", "system:version", "", "Show the version of vmm"),
    Entry("completion", "completion:completion", "bash|zsh|fish",
          "Print the completion script of a shell"),
    Entry("__complete", "completion:words", "[WORD...]",
          "List what may follow the words given", greedy=True, hidden=True),
)  # fmt: skip

GROUPS: dict[str, tuple[str, dict[str, Entry]]] = {
    "container": (
        "Manage workloads",
        CONTAINER | entries(
            Entry("ls", "listing:ps", "", "List workloads"),
            Entry("inspect", "inspection:inspect_containers", _MANY, "Show workloads as JSON"),
            Entry("prune", "lifecycle:prune", "", "Remove all stopped workloads"),
        ),
    ),
    "image": (
        "Manage images",
        entries(
            Entry("ls", "images:images", "[REPOSITORY[:TAG]]", "List images"),
            Entry("bootstrap", "images:bootstrap", "NAME",
                  "Make a base image from the host's package sources"),
            TOP["build"],
            TOP["import"],
            Entry("inspect", "inspection:inspect_images", "IMAGE [IMAGE...]",
                  "Show images as JSON"),
            TOP["history"],
            TOP["tag"],
            Entry("rm", "images:rmi", "IMAGE [IMAGE...]", "Remove one or more images"),
            Entry("prune", "images:prune", "", "Remove unused images"),
        ),
    ),
    "volume": (
        "Manage volumes",
        entries(
            Entry("create", "volumes:create", "[VOLUME]", "Create a volume"),
            Entry("inspect", "inspection:inspect_volumes", "VOLUME [VOLUME...]",
                  "Show volumes as JSON"),
            Entry("ls", "volumes:ls", "", "List volumes"),
            Entry("prune", "volumes:prune", "", "Remove unused volumes"),
            Entry("rm", "volumes:rm", "VOLUME [VOLUME...]", "Remove one or more volumes"),
        ),
    ),
    "network": (
        "Look at networks",
        entries(
            Entry("inspect", "inspection:inspect_networks", "NETWORK [NETWORK...]",
                  "Show networks as JSON"),
            Entry("ls", "networks:ls", "", "List networks"),
        ),
    ),
    "kernel": (
        "Manage the kernels that guests boot",
        entries(
            Entry("ls", "kernel:ls", "", "List the kernels that guests can boot"),
            Entry("add", "kernel:add", "FILE", "Add a kernel from a file"),
            Entry("fetch", "kernel:fetch", "[PACKAGE]",
                  "Get the distribution's kernel for virtual machines"),
            Entry("rm", "kernel:rm", "KERNEL [KERNEL...]", "Remove one or more kernels"),
        ),
    ),
    "meta": (
        "Keep tag:value metadata with a workload's storage",
        entries(
            Entry("set", "meta:set_", f"{_ONE} KEY=VALUE [KEY=VALUE...]", "Set metadata"),
            Entry("get", "meta:get", f"{_ONE} KEY", "Print one value"),
            Entry("ls", "meta:ls", _ONE, "List all metadata of a workload"),
            Entry("rm", "meta:rm", f"{_ONE} KEY [KEY...]", "Remove metadata"),
        ),
    ),
    "system": (
        "Look after an instance",
        entries(
            TOP["info"],
            Entry("df", "system:df", "", "Show how much storage is used"),
            Entry("check", "system:check", "", "Look for faults, and mend them with --repair"),
            Entry("rebuild", "system:rebuild", "", "Make the index anew from storage"),
            Entry("prune", "system:prune", "", "Remove all that is not used"),
            Entry("boot", "system:boot", "", "Repair after a boot, and start what asks for it"),
            Entry("reap", "system:reap", _ONE, "Release what an ended workload held"),
            Entry("libvirt", "hypervisor:libvirt", "start|stop|status",
                  "Start, stop or look at libvirt's daemons where no service manager does"),
            Entry("teardown", "system:teardown", "",
                  "Remove the instance's bridge and firewall rules"),
        ),
    ),
}  # fmt: skip


def find(words: list[str]) -> Entry | None:
    """The entry of ``["image", "ls"]`` or ``["run"]``."""
    if len(words) == 2 and words[0] in GROUPS:
        return GROUPS[words[0]][1].get(words[1])
    return TOP.get(words[0]) if len(words) == 1 else None


def everything() -> list[tuple[str, Entry]]:
    """Every command with its words: ``image ls``."""
    found = [(name, entry) for name, entry in TOP.items()]
    for group, (_, members) in GROUPS.items():
        found += [(f"{group} {name}", entry) for name, entry in members.items()]
    return found
