"""compile(): a workload as a guest. Its domain, how the shim keeps it, and the launch plan that
vmm-init carries out inside. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from vmm.backends.libvirt import domain, guest, naming
from vmm.backends.libvirt.variant import Variant
from vmm.backends.linux import mounts
from vmm.backends.linux.plan import INTERFACE
from vmm.backends.linux.plan import archive_plan as archive_linux
from vmm.backends.linux.plan import compile_exec as compile_linux_exec
from vmm.backends.linux.plan import compile_plan as compile_linux
from vmm.model.backend import CompileInput, ExecInput
from vmm.model.launch import LaunchPlan, Op, op

#: Name of the domain's document beside the plan.
DOCUMENT = "domain.xml"


def compile_plan(given: CompileInput, variant: Variant) -> LaunchPlan:
    """The whole plan of a guest."""
    return _around(compile_linux(guest.compile_input(given)), given, variant)


def archive_plan(given: CompileInput, variant: Variant) -> LaunchPlan:
    """A guest with the disks and mounts of one that is off, for copies."""
    return _around(archive_linux(guest.compile_input(given)), given, variant)


def _around(inside: LaunchPlan, given: CompileInput, variant: Variant) -> LaunchPlan:
    return LaunchPlan(
        tuple(_shim(inside.shim, given, variant)),
        tuple(_host(inside.host, given)),
        tuple(_child(inside.child, given)),
        ((DOCUMENT, domain.document(given, variant)),),
    )


def compile_exec(given: CompileInput, request: ExecInput) -> bytes:
    """A further process in the guest."""
    return compile_linux_exec(guest.compile_input(given), request)


def _shim(ops: Iterable[Op], given: CompileInput, variant: Variant) -> list[Op]:
    """As for a container, and how the guest is controlled and reached."""
    hypervisor = domain.hypervisor_of(given)
    control = (*hypervisor.control, hypervisor.uri, naming.uuid(given.spec.id))
    return [
        *ops,
        op("guest", *control),
        op("channel", naming.channel(given.paths.run), hypervisor.gid, hypervisor.uid),
        op("guest-timeout", variant.boot_ms, variant.answer_ms),
        op("adopt", int(given.adopt)),
    ]


def _host(ops: Iterable[Op], given: CompileInput) -> list[Op]:
    """Disks first; the guest's network is the workload's, so that there is no veth to make."""
    keep = given.spec.process
    stdio = [int(flag) for flag in (keep.tty, keep.stdin_open, keep.stdin_once)]
    return [*_mounts(given), op("guest.stdio", *stdio), *map(_in_guest, _without_veth(ops))]


def _without_veth(ops: Iterable[Op]) -> list[Op]:
    return [_own_link(made) for made in ops if made.name != "net.veth"]


def _own_link(made: Op) -> Op:
    """The link is counted inside, from the workload's own side."""
    counted = made.name == "stats" and made.args[0] == "net"
    return op("stats", "net-own", INTERFACE) if counted else made


def _in_guest(made: Op) -> Op:
    if made.name != "ns.new":
        return made
    return Op(made.name, tuple(kind for kind in made.args if kind != "net"))


def _mounts(given: CompileInput) -> list[Op]:
    """The image's root, the guest's own disk, and the shared directory."""
    root, top = f"{guest.BASE}/{guest.LOWER}", given.root
    ops = [
        op("guest.mount", "serial:root", root, top.filesystem, "ro", ""),
        op("guest.mount", "serial:disk", guest.DISK, "ext4", "noatime", "discard"),
        op("guest.mkdir", f"{guest.DISK}/upper", f"{top.mode:04o}", top.uid, top.gid),
        op("guest.mkdir", f"{guest.DISK}/work", "0700", 0, 0),
    ]
    if domain.shares(given):
        ops.append(op("guest.mount", naming.SHARE, guest.SHARE, "virtiofs", "", ""))
    return ops


def _child(ops: Iterable[Op], given: CompileInput) -> list[Op]:
    """Inside: the generated files are written just before the new root is entered."""
    found: list[Op] = []
    for made in ops:
        if made.name == "root.pivot":
            found += _files(given)
        found.append(op("init", guest.PROGRAM) if made.name == "init" else made)
    return found


def _files(given: CompileInput) -> list[Op]:
    """What lies in a mount of the user's is the user's."""
    taken = [mounts.normal(mount.target) for mount in given.mounts]
    return [
        op("file.write", path, "0644", text)
        for path, text in sorted(given.files.items())
        if not any(path == target or path.startswith(f"{target}/") for target in taken)
    ]
