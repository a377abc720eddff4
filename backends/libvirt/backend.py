"""The Backend of guests, for every hypervisor that libvirt drives."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from vmm.backends.libvirt.variant import Variant
from vmm.model.backend import (
    BackendOptions,
    Capability,
    CompileInput,
    ExecInput,
    HostFacts,
    ResolvedDevice,
)
from vmm.model.errors import HostError
from vmm.model.launch import LaunchPlan
from vmm.model.spec import WorkloadSpec

if TYPE_CHECKING:
    from vmm.backends.libvirt.port import Libvirt


class LibvirtBackend:
    """Implements vmm.model.backend.Backend; its parts are loaded when they are used."""

    name: ClassVar[str]
    variant: ClassVar[Variant]
    storage = "disk"
    shares_files = False
    outlives_shim = True
    keeps_spec = True
    copies_paused = False

    def __init__(
        self, options: BackendOptions | None = None, libvirt: Libvirt | None = None
    ) -> None:
        self.options = options or BackendOptions()
        self._given = libvirt

    @cached_property
    def libvirt(self) -> Libvirt:
        """The connection, made when it is first used."""
        if self._given is not None:
            return self._given
        from vmm.backends.libvirt.port import HostLibvirt

        return HostLibvirt(self.options.libvirt_uri)

    def probe(self) -> list[Capability]:
        from vmm.backends.libvirt.probe import probe

        return probe(self.libvirt, self.options, self.variant)

    def facts(self) -> HostFacts:
        from vmm.backends.libvirt.facts import gather
        from vmm.backends.libvirt.probe import asked

        return gather(asked(self.libvirt, self.options, self.variant))

    def check(self, spec: WorkloadSpec, facts: HostFacts) -> None:
        from vmm.backends.libvirt.check import check

        check(spec, facts)

    def devices(self, spec: WorkloadSpec) -> tuple[ResolvedDevice, ...]:
        """None of the host's, privileged or not."""
        return ()

    def compile(self, given: CompileInput) -> LaunchPlan:
        from vmm.backends.libvirt.plan import compile_plan

        return compile_plan(given, self.variant)

    def compile_exec(self, given: CompileInput, request: ExecInput) -> bytes:
        from vmm.backends.libvirt.plan import compile_exec

        return compile_exec(given, request)

    def compile_archive(
        self, given: CompileInput, direction: str, path: str, follow: bool
    ) -> bytes:
        from vmm.backends.libvirt.guest import compile_input
        from vmm.backends.linux.plan import compile_archive

        return compile_archive(compile_input(given), direction, path, follow)

    def archive_plan(self, given: CompileInput) -> LaunchPlan:
        from vmm.backends.libvirt.plan import archive_plan

        return archive_plan(given, self.variant)

    def filter(self, spec: WorkloadSpec, facts: HostFacts, cache: str) -> bytes:
        """The filter for the guest's kernel."""
        from vmm.backends.libvirt.guest import host
        from vmm.backends.linux.seccomp import compiled

        return compiled(spec, host(facts), cache)

    def record(self, given: CompileInput, plan: LaunchPlan) -> None:
        """Define the persistent domain, with the spec in its metadata."""
        self.libvirt.define(dict(plan.documents)["domain.xml"])

    def prepare(self, given: CompileInput, plan: LaunchPlan) -> None:
        """The shared directory, QEMU's way to its files, and the domain as it is now."""
        from vmm.backends.libvirt import access, shares, tap
        from vmm.backends.libvirt.domain import hypervisor_of

        hypervisor = hypervisor_of(given)
        access.prepare(given)
        shares.prepare(given)
        if hypervisor.session and given.endpoint:
            tap.make(given.endpoint, hypervisor.uid)
        self.record(given, plan)

    def alive(self, given: CompileInput) -> bool:
        """Whether its emulator runs; where libvirtd is down as well."""
        return self._pid(given) > 0

    def _pid(self, given: CompileInput) -> int:
        from vmm.backends.libvirt import naming
        from vmm.backends.libvirt.control import pid_by_uuid, pid_of

        uuid, uri = naming.uuid(given.spec.id), self.options.libvirt_uri
        name = naming.domain(self.options.mark, given.spec.id)
        return pid_of(uri, name, uuid) or pid_by_uuid(uri, uuid)

    def halted(self, workload: str) -> str:
        """Whether QEMU stopped it, as its disk's file cannot grow (vmm.model.backend.Halting)."""
        from vmm.backends.libvirt import naming
        from vmm.backends.libvirt.halt import reason

        return reason(self.options.libvirt_uri, naming.domain(self.options.mark, workload))

    def console(self, given: CompileInput) -> str:
        """The serial line, a terminal of the host (vmm.model.backend.Console)."""
        from vmm.backends.libvirt import naming

        path = self.libvirt.console(naming.uuid(given.spec.id))
        if not path:
            raise HostError(
                f"{given.spec.name}: libvirt knows no console of the guest",
                f"vmm logs {given.spec.name} shows what it prints",
            )
        return path

    def cleanup(self, given: CompileInput) -> None:
        """End what still runs, and take the shared directory and a session's link back."""
        from vmm.backends.libvirt import naming, shares, tap
        from vmm.model.ids import link_name

        pid, uuid = self._pid(given), naming.uuid(given.spec.id)
        if pid:
            self._end(pid, uuid)
        shares.cleanup(given.paths.run)
        tap.remove(link_name(given.spec.id))

    def _end(self, pid: int, uuid: str) -> None:
        """Through libvirt; without it where that is down, or cannot."""
        from vmm.backends.libvirt.control import end_alone

        try:
            self.libvirt.destroy(uuid)
        except HostError:
            if not end_alone(pid, uuid):
                raise

    def forget(self, given: CompileInput) -> None:
        from vmm.backends.libvirt import logs, naming

        self.libvirt.undefine(naming.uuid(given.spec.id))
        logs.remove(naming.domain(self.options.mark, given.spec.id))

    def known(self) -> list[WorkloadSpec]:
        """What libvirt's metadata says of this instance and this backend."""
        from vmm.backends.libvirt.metadata import decode

        found = (decode(text, self.options.mark) for text in self.libvirt.metadata())
        return [spec for spec in found if spec and spec.backend == self.name]

    def update(self, given: CompileInput, running: bool) -> bytes:
        """Nothing is left to the shim; a guest that is off gets all at its next start."""
        from vmm.backends.libvirt.update import update

        if running:
            update(self.libvirt, given)
        return b""
