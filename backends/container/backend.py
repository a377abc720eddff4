"""The Backend of Linux containers."""

from __future__ import annotations

from vmm.model.backend import (
    BackendOptions,
    Capability,
    CompileInput,
    ExecInput,
    HostFacts,
    ResolvedDevice,
)
from vmm.model.launch import LaunchPlan
from vmm.model.spec import Device, WorkloadSpec


class ContainerBackend:
    """Implements vmm.model.backend.Backend; its parts are loaded when they are used."""

    name = "container"
    storage = "overlay"
    shares_files = True
    outlives_shim = False
    keeps_spec = False
    copies_paused = True

    def __init__(self, options: BackendOptions | None = None) -> None:
        self.options = options or BackendOptions()

    def probe(self) -> list[Capability]:
        from vmm.backends.container.probe import probe

        return probe(self.facts())

    def facts(self) -> HostFacts:
        from vmm.backends.container.facts import gather

        return gather()

    def check(self, spec: WorkloadSpec, facts: HostFacts) -> None:
        from vmm.backends.container.check import check

        check(spec, facts)

    def devices(self, spec: WorkloadSpec) -> tuple[ResolvedDevice, ...]:
        """The nodes of ``--device``."""
        from vmm.backends.linux.devices import of_workload

        return of_workload(spec)

    def resolve_device(self, device: Device) -> tuple[ResolvedDevice, ...]:
        """The node or nodes behind one ``--device``; UsageError if it is none."""
        from vmm.backends.linux.devices import resolve

        return resolve(device)

    def compile(self, given: CompileInput) -> LaunchPlan:
        from vmm.backends.linux.plan import compile_plan

        return compile_plan(given)

    def compile_exec(self, given: CompileInput, request: ExecInput) -> bytes:
        from vmm.backends.linux.plan import compile_exec

        return compile_exec(given, request)

    def compile_archive(
        self, given: CompileInput, direction: str, path: str, follow: bool
    ) -> bytes:
        from vmm.backends.linux.plan import compile_archive

        return compile_archive(given, direction, path, follow)

    def archive_plan(self, given: CompileInput) -> LaunchPlan:
        from vmm.backends.linux.plan import archive_plan

        return archive_plan(given)

    def filter(self, spec: WorkloadSpec, facts: HostFacts, cache: str) -> bytes:
        from vmm.backends.linux.seccomp import compiled

        return compiled(spec, facts, cache)

    def record(self, given: CompileInput, plan: LaunchPlan) -> None:
        """The kernel keeps no definitions: ``workload.json`` is all there is."""

    def prepare(self, given: CompileInput, plan: LaunchPlan) -> None:
        """All that a container needs is made by its launch plan."""

    def alive(self, given: CompileInput) -> bool:
        """Bound to its shim, it dies with it."""
        return False

    def forget(self, given: CompileInput) -> None:
        """Nothing was recorded."""

    def known(self) -> list[WorkloadSpec]:
        return []

    def update(self, given: CompileInput, running: bool) -> bytes:
        from vmm.backends.linux.cgroups import update

        return update(given) if running else b""

    def cleanup(self, given: CompileInput) -> None:
        from vmm.backends.container.cleanup import cleanup

        cleanup(given)
