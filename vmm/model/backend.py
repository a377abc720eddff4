"""What a backend is, to the engine: pure compile, thin start; and the facts it compiles with."""

from typing import Protocol, runtime_checkable

import msgspec

from vmm.model.launch import LaunchPlan
from vmm.model.spec import WorkloadSpec


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the host can do something, and why (not)."""

    name: str
    available: bool
    reason: str = ""


class CgroupHierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted hierarchy (cgroups(7)); ``version`` 1 or 2."""

    version: int
    #: Controllers usable here; a v1 named hierarchy is ("name=systemd",).
    controllers: tuple[str, ...]
    mountpoint: str
    #: This process's own cgroup, relative to the hierarchy's root ("/" or "/a/b").
    own: str = "/"


class Hypervisor(msgspec.Struct, frozen=True, kw_only=True):
    """What runs virtual machines here, as libvirt tells (virConnectGetDomainCapabilities)."""

    uri: str
    #: "kvm" or "tcg".
    accelerator: str
    emulator: str
    #: Canonical machine type, versioned ("pc-q35-7.2").
    machine: str
    #: Whom QEMU runs as; what it is to read belongs to that group, what it writes to that user.
    uid: int = 0
    gid: int = 0
    virtiofsd: str = ""
    #: libvirt's version, as 9.0.0 → 9_000_000, and the emulator's.
    version: int = 0
    emulator_version: int = 0
    #: It is one user's libvirt (qemu:///session), whose QEMU has that user's rights alone: no
    #: control groups, no links, no virtiofs.
    session: bool = False
    #: argv of the program that starts and ends a domain, but for its last argument.
    control: tuple[str, ...] = ()


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the host, gathered once; compile() sees nothing else of it."""

    os: str = "linux"
    architecture: str = "amd64"
    kernel: tuple[int, int] = (6, 1)
    cpus: int = 1
    #: Capabilities of the bounding set, as a bit mask (capabilities(7)).
    cap_bounding: int = 0
    #: Hard limits by rlimit name ("nofile"); -1 is unlimited.
    rlimits: dict[str, int] = {}
    cgroups: tuple[CgroupHierarchy, ...] = ()
    #: May raise resource limits above the hard ones (CAP_SYS_RESOURCE).
    can_raise_limits: bool = True
    has_mqueue: bool = True
    has_ipv6: bool = True
    #: CPUs a workload may be bound to ("0-3", cpuset(7), "List format");
    #: empty when there is no cpuset controller.
    cpuset_cpus: str = ""
    #: The memory controller also limits swap.
    swap_limit: bool = True
    #: Device programs (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE) can be loaded: the device list of
    #: cgroup2. Asked only where no devices controller of v1 is.
    device_programs: bool = False
    #: Why not, when they were asked for.
    device_programs_reason: str = ""
    #: Bytes of memory.
    memory: int = 0
    #: For backends that run guests.
    hypervisor: Hypervisor | None = None

    @property
    def limits_processes(self) -> bool:
        """Whether a workload's number of processes can be limited; a guest's own kernel can."""
        groups = any("pids" in group.controllers for group in self.cgroups)
        return groups or self.hypervisor is not None


class RootLayout(msgspec.Struct, frozen=True, kw_only=True):
    """A copy-on-write root as the storage driver prepared it.

    For ``overlay``: ``lowers`` are paths relative to ``layers_dir``, topmost first;
    for ``directory`` (an external root) only ``path`` is set.  For ``disk`` (a guest's root)
    ``path`` is the read-only disk image of all ``lowers``, ``disk`` the writable one.
    """

    driver: str
    layers_dir: str = ""
    lowers: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""
    path: str = ""
    disk: str = ""
    #: File system type of ``path``: "erofs" or "ext4".
    filesystem: str = ""
    #: Mode and owner of ``/``, for a writable layer that has none yet (a guest's disk).
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    #: What a guest boots: kernel image and initramfs.
    kernel: str = ""
    initrd: str = ""
    #: Skip syncing (overlayfs ``volatile``): the workload goes away with its process.
    volatile: bool = False


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The workload's place on a bridge network; ``link`` is the host's interface name."""

    bridge: str
    link: str
    address: str
    prefix: int
    gateway: str
    mac: str
    mtu: int = 1500


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A user resolved against the image's passwd and group files."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


class ResolvedMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount with its source on the host settled (volumes already have their path)."""

    kind: str
    target: str
    source: str = ""
    #: The source is a directory.
    directory: bool = True
    read_only: bool = False
    propagation: str = "rprivate"
    options: tuple[str, ...] = ()


class ResolvedDevice(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    #: "c" or "b".
    type: str
    major: int
    minor: int
    mode: int
    uid: int = 0
    gid: int = 0
    permissions: str = "rwm"


class WorkloadPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a workload's files are (absolute)."""

    #: ``<root>/workloads/<id>``
    directory: str
    #: ``/run/vmm/<instance>/<id12>``: control socket ``ctl.sock``.
    run: str
    state: str
    log: str
    events: str
    #: Generated files bind-mounted over the image's.
    hosts: str
    hostname: str
    resolv_conf: str
    #: Static programs: shim, relay, init.
    libexec: str


class CompileInput(msgspec.Struct, frozen=True, kw_only=True):
    """All that compile() may look at."""

    spec: WorkloadSpec
    root: RootLayout
    host: HostFacts
    paths: WorkloadPaths
    #: Name of the cgroup parent of the instance ("vmm" or "vmm-<instance>").
    cgroup_parent: str
    boot_id: str = ""
    user: User = User()
    mounts: tuple[ResolvedMount, ...] = ()
    devices: tuple[ResolvedDevice, ...] = ()
    endpoint: Endpoint | None = None
    #: The compiled seccomp filter (struct sock_filter[]), empty for none.
    seccomp: bytes = b""
    #: argv of the reaper, run by the shim when the workload ended for good.
    reaper: tuple[str, ...] = ()
    #: argv of the port relay; its sockets are inherited by the shim.
    relay: tuple[str, ...] = ()
    #: Text of the generated files by their path inside, where they cannot be shared.
    files: dict[str, str] = {}
    #: Bytes of memory of a guest that names none.
    guest_memory: int = 512 << 20
    #: The workload runs already and lost its shim: only take it over.
    adopt: bool = False
    #: The spec as it is stored, for platforms that keep a copy; None: the same as ``spec``.
    stored: WorkloadSpec | None = None


class ExecInput(msgspec.Struct, frozen=True, kw_only=True):
    """A further process in a running workload."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: User
    tty: bool = False
    privileged: bool = False


class BackendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of the instance a backend is made with."""

    #: Name of the instance in the kernel and at hypervisors ("vmm" or "vmm-<instance>").
    mark: str = "vmm"
    libvirt_uri: str = "qemu:///system"
    #: The instance's directory for what can be made again.
    cache: str = ""


@runtime_checkable
class Console(Protocol):
    """The power of backends whose workloads have a console of their own."""

    def console(self, given: "CompileInput") -> str:
        """Path of the running workload's terminal device."""
        ...


@runtime_checkable
class Halting(Protocol):
    """The power of backends whose platform may stop a running workload by itself."""

    def halted(self, workload: str) -> str:
        """Why a workload that runs stands still, "" when it does not; cheap."""
        ...


class Backend(Protocol):
    """A kind of workload. compile() and compile_exec() are pure."""

    name: str
    #: What its roots are made of: "overlay" or "disk" (RootLayout.driver).
    storage: str
    #: The workload sees the generated files (/etc/hosts …) themselves, not a copy.
    shares_files: bool
    #: Runs on when its shim is lost, and can be given a new one.
    outlives_shim: bool
    #: The platform keeps definition and spec too: record() at every change of them.
    keeps_spec: bool
    #: While it is paused its processes alone stand still, so that its files can be copied.
    copies_paused: bool

    def probe(self) -> list[Capability]:
        """What this host allows; the first entry is the backend itself."""
        ...

    def facts(self) -> HostFacts: ...

    def check(self, spec: WorkloadSpec, facts: HostFacts) -> None:
        """Raise Unsupported for any option this backend or host cannot honour."""
        ...

    def devices(self, spec: WorkloadSpec) -> tuple[ResolvedDevice, ...]:
        """The host device nodes the workload gets; UsageError when one is not there."""
        ...

    def compile(self, given: CompileInput) -> LaunchPlan: ...

    def compile_exec(self, given: CompileInput, request: ExecInput) -> bytes:
        """The operations of an exec request, encoded."""
        ...

    def compile_archive(
        self, given: CompileInput, direction: str, path: str, follow: bool
    ) -> bytes:
        """The operations of an exec request that writes the file or tree ``path`` to its standard
        output as a file stream ("get"), or reads one into the directory ``path`` ("put")."""
        ...

    def archive_plan(self, given: CompileInput) -> LaunchPlan:
        """A plan of its own for the root and mounts of a workload that does not run, in which such
        processes can run until the end of its input."""
        ...

    def filter(self, spec: WorkloadSpec, facts: HostFacts, cache: str) -> bytes:
        """The compiled seccomp filter of ``spec``, from the cache directory if it is there."""
        ...

    def record(self, given: CompileInput, plan: LaunchPlan) -> None:
        """Keep the definition and the spec's public part with the platform, if it has a place for
        them (libvirt's persistent domain and its metadata); idempotent."""
        ...

    def prepare(self, given: CompileInput, plan: LaunchPlan) -> None:
        """Make on the host what the plan needs, just before its shim starts; idempotent, taken
        back by cleanup()."""
        ...

    def alive(self, given: CompileInput) -> bool:
        """Whether the workload itself runs, whatever became of its shim."""
        ...

    def cleanup(self, given: CompileInput) -> None:
        """Remove what a dead workload left in the kernel (cgroups, processes); idempotent."""
        ...

    def forget(self, given: CompileInput) -> None:
        """Remove what record() kept; idempotent."""
        ...

    def known(self) -> list[WorkloadSpec]:
        """The public parts of the specs that the platform itself keeps (record()); whole ones
        where an earlier version wrote them."""
        ...

    def update(self, given: CompileInput, running: bool) -> bytes:
        """``given`` has changed limits: apply what the platform does, and return the operations
        (encoded, section ``host``) that the shim is to carry out."""
        ...
