"""What every use-case needs: the instance's directories, stores, services and locks.

Each part is made when it is first used, so that a command loads only what it needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vmm.model.backend import WorkloadPaths
from vmm.model.errors import CorruptStore, HostError
from vmm.model.ids import short
from vmm.ports.files import locked
from vmm.ports.space import Reserve, explained
from vmm.settings import Settings
from vmm.state.copies import SpecCopies
from vmm.state.events import EventLog
from vmm.state.index import Index, Row, Stored
from vmm.state.journal import Journal
from vmm.state.workloads import WorkloadStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.guest.roots import DiskDriver
    from vmm.image.store import ImageStore
    from vmm.model.backend import Backend, BackendOptions, HostFacts, RootLayout
    from vmm.model.network import NetworkRecord
    from vmm.model.spec import WorkloadSpec
    from vmm.network.names import NameService
    from vmm.network.service import NetworkService
    from vmm.storage.overlay import OverlayDriver
    from vmm.storage.volumes import VolumeStore

#: Below the instance's root; 0710 keeps other users out (and lets a group through later).
DIRECTORIES = ("workloads", "images", "layers", "volumes", "networks", "journal", "cache", "builds")


class Context:
    """One instance: its settings and, lazily, everything made from them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.root_path
        self.run_dir = settings.run_dir
        #: What the user should be told beside the result; a face prints and clears it.
        self.notices: list[str] = []
        self._held = threading.local()
        self._prepare_directories()

    def _prepare_directories(self) -> None:
        with explained(self.root, self.run_dir):
            self._make_directories()

    def _make_directories(self) -> None:
        try:
            if (self.root / "builds").is_dir() and (self.run_dir / "locks").is_dir():
                if os.access(self.root, os.W_OK):
                    return
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
            self.root.mkdir(mode=0o710, parents=True, exist_ok=True)
            self.root.chmod(0o710)
            for name in DIRECTORIES:
                (self.root / name).mkdir(mode=0o710, exist_ok=True)
            self.run_dir.parent.mkdir(mode=0o711, exist_ok=True)
            self.run_dir.mkdir(mode=0o700, exist_ok=True)
            (self.run_dir / "locks").mkdir(mode=0o700, exist_ok=True)
        except PermissionError as error:
            raise HostError(
                f"no permission for {error.filename}", "run vmm as root: sudo vmm …"
            ) from None

    @cached_property
    def reserve(self) -> Reserve:
        """Room for what makes room on a full disk; every change stocks it up."""
        return Reserve(self.root / "reserve")

    @cached_property
    def store(self) -> WorkloadStore:
        return WorkloadStore(self.root / "workloads")

    @cached_property
    def copies(self) -> SpecCopies:
        """Whole specs of workloads whose platform keeps a definition, with the public part."""
        return SpecCopies(self.root / "guest" / "specs")

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.root / "journal")

    @cached_property
    def events(self) -> EventLog:
        return EventLog(self.root / "events.jsonl")

    @cached_property
    def index(self) -> Index:
        index = Index(self.root / "index.db")
        if index.fresh:
            with self.lock("instance"):
                index.create()
                self._fill(index)
        return index

    def rebuild_index(self) -> list[str]:
        """Make the index anew from storage; the ids of workloads whose spec cannot be read."""
        from vmm.state.index import discard

        path = self.root / "index.db"
        with self.lock("instance"):
            try:
                index = Index(path)
                index.verify()
            except CorruptStore:
                discard(path)
                index = Index(path)
                self.__dict__["index"] = index
            index.create()
            return self._fill(index)

    def _fill(self, index: Index) -> list[str]:
        bad: list[str] = []
        for workload in index.replace(lambda: self._stored(index, bad)):
            self.notices.append(
                f"workload {short(workload)} has another's name, so only its id finds it; "
                f"give it a name: vmm rename {short(workload)} NAME"
            )
        return bad

    def _stored(self, index: Index, bad: list[str]) -> Stored:
        """What storage says; one whose spec cannot be read keeps its name, else has its id's."""
        creating = self.journal.active()
        names = {row.id: row.name for row in index.rows()}
        rows, claims = [], []
        network = self.bridge_id
        for workload in self.store.ids():
            if not self.store.registered(workload):
                continue
            try:
                spec = self.store.read(workload)
            except CorruptStore:
                bad.append(workload)
                rows.append(Row(workload, names.get(workload, short(workload)), 0))
                continue
            rows.append(Row(spec.id, spec.name, spec.created))
            if spec.network.address:
                claims.append((network, spec.network.address, spec.id))
        return Stored(rows, claims, creating)

    @cached_property
    def layers(self) -> OverlayDriver:
        from vmm.storage.overlay import OverlayDriver

        return OverlayDriver(self.root / "layers")

    @cached_property
    def disks(self) -> DiskDriver:
        """Roots of guests: disk images of the same layers."""
        from vmm.guest.roots import DiskDriver

        return DiskDriver(
            self.root,
            self.layers,
            libexec=self.settings.libexec_dir,
            kernel=self.settings.kernel,
            size=self.settings.guest_disk,
        )

    def prepare_root(self, backend: str, chain_ids: Sequence[str], workload: str) -> RootLayout:
        """A workload's root of these layers, as its backend needs it; made if it is missing. A
        guest that runs keeps the kernel that it booted."""
        directory = self.store.path(workload)
        if self.backend(backend).storage == "overlay":
            return self.layers.prepare(chain_ids, directory)
        hypervisor = self.facts(backend).hypervisor
        assert hypervisor is not None, f"backend {backend} has disks, but no hypervisor"
        return self.disks.prepare(
            chain_ids,
            directory,
            uid=hypervisor.uid,
            gid=hypervisor.gid,
            emulated=hypervisor.accelerator == "tcg",
            used=self._ran(workload, backend),
            running=self._runs(workload),
        )

    def _runs(self, workload: str) -> bool:
        """Whether its state says that it runs, since this boot of the host."""
        from vmm.engine.status import LIVE

        state = self.store.state(workload)
        return state.status in LIVE and state.boot_id == boot_id()

    def _ran(self, workload: str, backend: str) -> bool:
        """Whether it was ever started, by this backend."""
        if not self.store.registered(workload) or not self.store.state(workload).started:
            return False
        return self.store.read(workload).backend == backend

    @cached_property
    def images(self) -> ImageStore:
        from vmm.image.store import ImageStore

        return ImageStore(self.root, self.layers, self.settings.default_domain)

    @cached_property
    def volumes(self) -> VolumeStore:
        from vmm.storage.volumes import VolumeStore

        return VolumeStore(self.root)

    @cached_property
    def network(self) -> NetworkService:
        from vmm.network.service import NetworkService
        from vmm.ports.runner import HostRunner

        settings = self.settings
        return NetworkService(
            mark=settings.mark,
            bridge=settings.bridge,
            root=self.root,
            run_dir=self.run_dir,
            pools=settings.subnet_pools,
            prefix=settings.subnet_prefix,
            mtu=settings.mtu,
            claims=self.index,
            runner=HostRunner(),
        )

    @property
    def bridge_id(self) -> str:
        """Id of the default network, "" before it was first looked at."""
        from vmm.network.records import NetworkRecords

        records = NetworkRecords(self.root / "networks", self.settings.bridge).load()
        return next((record.id for record in records if record.name == "bridge"), "")

    @cached_property
    def names(self) -> NameService:
        from vmm.network.names import HostsFiles

        return HostsFiles(self.network.lock)

    def bridge(self) -> NetworkRecord:
        """The default bridge, made ready; what was changed on the host becomes a notice."""
        ensured = self.network.ensure_bridge()
        self.notices += ensured.notices
        return ensured.record

    @cached_property
    def _backends(self) -> dict[str, Backend]:
        return {}

    def backend(self, name: str) -> Backend:
        from vmm.engine.backends import load

        if name not in self._backends:
            self._backends[name] = load(name, self.options)
        return self._backends[name]

    @property
    def options(self) -> BackendOptions:
        """What backends are made with."""
        from vmm.model.backend import BackendOptions

        return BackendOptions(
            mark=self.settings.mark,
            libvirt_uri=self.settings.libvirt_uri,
            cache=str(self.root / "cache"),
        )

    def facts(self, name: str) -> HostFacts:
        cache: dict[str, HostFacts] = self.__dict__.setdefault("_facts", {})
        if name not in cache:
            cache[name] = self.backend(name).facts()
        return cache[name]

    def seccomp(self, spec: WorkloadSpec) -> bytes:
        """The compiled filter of a workload, by its own profile, else the instance's, else ours."""
        own = self.settings.seccomp_profile
        if own and not spec.security.seccomp and not spec.security.privileged:
            try:
                text = Path(own).read_text()
            except OSError as error:
                raise HostError(
                    f"seccomp profile {own}: {error.strerror}",
                    f"mend the setting ({self.settings.sources.get('seccomp_profile', '')})",
                ) from None
            security = replace(spec.security, seccomp=text)
            spec = replace(spec, security=security)
        facts = self.facts(spec.backend)
        return self.backend(spec.backend).filter(spec, facts, str(self.root / "cache"))

    def paths(self, workload: str) -> WorkloadPaths:
        """Where the files of a workload are."""
        directory = self.store.path(workload)
        return WorkloadPaths(
            directory=str(directory),
            run=str(self.run_dir / short(workload)),
            state=str(directory / "state.json"),
            log=str(directory / f"{workload}-json.log"),
            events=str(self.events.path),
            hosts=str(directory / "hosts"),
            hostname=str(directory / "hostname"),
            resolv_conf=str(directory / "resolv.conf"),
            libexec=str(self.settings.libexec_dir),
        )

    @contextlib.contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """A lock of this instance: ``instance``, ``images``, ``network`` or a workload's id.

        One that this thread holds already is not taken again.
        """
        held: set[str] = self._held.__dict__.setdefault("names", set())
        if name in held:
            yield
            return
        with locked(self.run_dir / "locks" / name, shared=shared, timeout=60):
            held.add(name)
            try:
                yield
            finally:
                held.discard(name)

    @contextlib.contextmanager
    def workload(self, reference: str) -> Iterator[str]:
        """Look a workload up and hold its lock; yields the id."""
        row = self.index.lookup(reference)
        with self.lock(row.id):
            yield self.index.lookup(row.id).id

    def reaper(self, workload: str) -> tuple[str, ...]:
        """The command that tidies up after a workload; run by its shim."""
        import sys

        return (
            sys.executable, "-P", "-m", "vmm", "--root", str(self.root), "system", "reap", workload,
        )  # fmt: skip


def boot_id() -> str:
    """Changes with every boot of the host (proc(5), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot, 0 if there is none (proc_pid_stat(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive(pid: int, ticks: int) -> bool:
    """Whether the process recorded as ``pid`` and start time still runs."""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks
