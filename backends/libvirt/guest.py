"""The host that a workload sees inside a guest: its own kernel, all capabilities, cgroup v2."""

from __future__ import annotations

import msgspec

from vmm.backends.libvirt import sizing
from vmm.backends.linux.capabilities import ALL
from vmm.model.backend import (
    CgroupHierarchy,
    CompileInput,
    HostFacts,
    ResolvedMount,
    RootLayout,
)
from vmm.model.platform import OLDEST_GUEST

CAPABILITIES = ALL

#: Directories of vmm-init's own root (native/LAUNCH.md, ``guest.mount``).
BASE = "/vmm"
#: The image's read-only root, below BASE.
LOWER = "root"
DISK = f"{BASE}/disk"
SHARE = f"{BASE}/share"
#: vmm-init itself, for ``--init``: the kernel started it by this name.
PROGRAM = "/init"

CGROUPS = CgroupHierarchy(
    version=2, controllers=("cpuset", "cpu", "io", "memory", "pids"), mountpoint="/sys/fs/cgroup"
)


def host(facts: HostFacts) -> HostFacts:
    """The facts inside a guest on this host."""
    return HostFacts(
        os="linux",
        architecture=facts.architecture,
        kernel=OLDEST_GUEST,
        cpus=facts.cpus,
        cap_bounding=CAPABILITIES,
        cgroups=(CGROUPS,),
        device_programs=True,
    )


def shared(given: CompileInput) -> list[tuple[int, ResolvedMount]]:
    """What of the host the guest sees, each with its number: its name in the shared directory."""
    found = [mount for mount in given.mounts if mount.kind != "tmpfs"]
    return list(enumerate(found))


#: The name of a single file in the directory that it has for itself.
FILE = "file"


def compile_input(given: CompileInput) -> CompileInput:
    """The workload as a Linux guest's own launcher gets it: sources and root are paths inside,
    and generated files are written and not mounted."""
    sources = {id(mount): _source(number, mount) for number, mount in shared(given)}
    mounts = tuple(
        msgspec.structs.replace(mount, source=sources.get(id(mount), mount.source))
        for mount in given.mounts
    )
    spec = msgspec.structs.replace(given.spec, resources=sizing.inside(given.spec.resources))
    paths = msgspec.structs.replace(given.paths, hosts="", hostname="", resolv_conf="")
    return msgspec.structs.replace(
        given,
        spec=spec,
        root=_root(given),
        host=host(given.host),
        paths=paths,
        cgroup_parent="vmm",
        mounts=mounts,
        devices=(),
    )


def _source(number: int, mount: ResolvedMount) -> str:
    path = f"{SHARE}/{number}"
    return path if mount.directory else f"{path}/{FILE}"


def _root(given: CompileInput) -> RootLayout:
    """The image's disk below the guest's own."""
    return RootLayout(
        driver="overlay",
        layers_dir=BASE,
        lowers=(LOWER,),
        upper=f"{DISK}/upper",
        work=f"{DISK}/work",
        volatile=given.root.volatile,
    )
