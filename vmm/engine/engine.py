"""The engine's face: one method per use-case. The CLI and every other face call nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from vmm.engine.context import Context
from vmm.engine.fulldisk import makes_room, tells_full_disk
from vmm.model.backend import Capability
from vmm.model.errors import NotFound, VmmError
from vmm.model.request import BuildRequest, CreateRequest, ExecRequest, UpdateRequest
from vmm.model.spec import WorkloadSpec
from vmm.settings import Settings

if TYPE_CHECKING:
    from vmm.engine.logs import LogLine
    from vmm.engine.processes import Listing
    from vmm.engine.sessions import Session
    from vmm.engine.statistics import Monitor
    from vmm.engine.views import WorkloadView
    from vmm.model.image import Image
    from vmm.model.network import NetworkRecord
    from vmm.storage.volumes import Volume


@tells_full_disk
class Engine:
    """All use-cases of one instance.  References are ids, names or unique id prefixes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ctx = Context(settings)

    def notices(self) -> list[str]:
        """What the user should be told beside the result; cleared by reading."""
        found, self.ctx.notices = self.ctx.notices, []
        return found

    # ---- workloads

    def create(self, request: CreateRequest) -> WorkloadSpec:
        from vmm.engine import lifecycle

        return lifecycle.create(self.ctx, request)

    def start(self, reference: str) -> WorkloadSpec:
        from vmm.engine import lifecycle

        return lifecycle.start(self.ctx, reference)

    def attach(
        self,
        reference: str,
        *,
        start: bool = False,
        stdin: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Session:
        """Open streams; ``size``: rows and columns that the terminal begins with."""
        from vmm.engine import sessions

        return sessions.attach(self.ctx, reference, start=start, stdin=stdin, size=size)

    def exec(self, reference: str, request: ExecRequest) -> Session | None:
        from vmm.engine import sessions

        return sessions.exec_(self.ctx, reference, request)

    @makes_room
    def finish(self, reference: str) -> None:
        """Tidy up in this process after a foreground run."""
        self.reap(reference)

    @makes_room
    def reap(self, reference: str) -> None:
        from vmm.engine import lifecycle

        lifecycle.reap(self.ctx, reference)

    @makes_room
    def stop(self, reference: str, timeout: int | None = None, signal: str | None = None) -> None:
        from vmm.engine import lifecycle

        lifecycle.stop(self.ctx, reference, timeout, signal)

    def restart(
        self, reference: str, timeout: int | None = None, signal: str | None = None
    ) -> None:
        from vmm.engine import lifecycle

        lifecycle.restart(self.ctx, reference, timeout, signal)

    @makes_room
    def kill(self, reference: str, signal: str = "KILL") -> None:
        from vmm.engine import lifecycle

        lifecycle.kill(self.ctx, reference, signal)

    def rename(self, reference: str, name: str) -> None:
        from vmm.engine import lifecycle

        lifecycle.rename(self.ctx, reference, name)

    @makes_room
    def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> None:
        from vmm.engine import lifecycle

        lifecycle.remove(self.ctx, reference, force=force, volumes=volumes)

    def console(self, reference: str) -> str:
        """Path of the terminal device that is the workload's console."""
        from vmm.engine import sessions

        return sessions.console(self.ctx, reference)

    def pause(self, reference: str) -> None:
        from vmm.engine import pausing

        pausing.pause(self.ctx, reference)

    def unpause(self, reference: str) -> None:
        from vmm.engine import pausing

        pausing.unpause(self.ctx, reference)

    def top(self, reference: str, options: Sequence[str] = ()) -> Listing:
        """The processes, with the columns that these options of ps(1) ask for."""
        from vmm.engine import processes

        return processes.top(self.ctx, reference, options)

    def stats(self, references: Sequence[str], *, everything: bool = False) -> Monitor:
        """What the workloads named (none: all that run) use, to be sampled again and again."""
        from vmm.engine import statistics

        return statistics.Monitor(self.ctx, references, everything=everything)

    def update(self, reference: str, request: UpdateRequest) -> None:
        """Change limits and restart policy, of a running workload at once."""
        from vmm.engine import updating

        updating.update(self.ctx, reference, request)

    def copy_out(
        self, reference: str, path: str, target: str, *, archive: bool, follow: bool
    ) -> int:
        """Copy ``path`` of a workload to the host's ``target``; the bytes of the files."""
        from vmm.engine import copying

        return copying.copy_out(self.ctx, reference, path, target, archive=archive, follow=follow)

    def copy_in(
        self, source: str, reference: str, path: str, *, archive: bool, follow: bool
    ) -> int:
        """Copy the host's ``source`` to ``path`` in a workload; the bytes of the files."""
        from vmm.engine import copying

        return copying.copy_in(self.ctx, source, reference, path, archive=archive, follow=follow)

    def tar_out(self, reference: str, path: str, target: IO[bytes], *, follow: bool) -> None:
        """Write ``path`` of a workload as a tar archive."""
        from vmm.engine import copying

        copying.tar_out(self.ctx, reference, path, target, follow=follow)

    def tar_in(self, source: IO[bytes], reference: str, path: str) -> None:
        """Unpack a tar archive in the directory ``path`` of a workload."""
        from vmm.engine import copying

        copying.tar_in(self.ctx, source, reference, path)

    def wait(self, reference: str) -> int:
        from vmm.engine import sessions

        return sessions.wait(self.ctx, reference)

    def workloads(self, *, everything: bool = False) -> list[WorkloadView]:
        from vmm.engine import query

        return query.list_workloads(self.ctx, everything=everything)

    def view(self, reference: str) -> WorkloadView:
        from vmm.engine import query

        return query.view(self.ctx, self.ctx.index.lookup(reference).id, whole=True)

    def logs(
        self,
        reference: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str = "",
        until: str = "",
    ) -> Iterator[LogLine]:
        from vmm.engine import query

        return query.logs(self.ctx, reference, follow=follow, tail=tail, since=since, until=until)

    def explain(self, reference: str, backend: str = "") -> str:
        """The artefact a backend makes of the workload."""
        from vmm.engine import query

        return query.explain(self.ctx, reference, backend)

    # ---- metadata

    def meta(self, reference: str) -> dict[str, str]:
        return dict(self.ctx.store.read(self.ctx.index.lookup(reference).id).metadata)

    def meta_change(self, reference: str, changes: dict[str, str | None]) -> None:
        """Set keys, or remove those whose value is None; all in one write."""
        from vmm.engine import query

        query.change_metadata(self.ctx, reference, changes)

    # ---- images

    def images(self) -> list[Image]:
        return self.ctx.images.list()

    def image(self, reference: str) -> Image:
        return self.ctx.images.resolve(reference)

    def familiar(self, reference: str) -> str:
        """A normalised reference as it is shown, without the default domain."""
        return self.ctx.images.familiar(reference)

    def layer_sizes(self, image: Image) -> list[int]:
        """Bytes of each layer's files, base first."""
        return [self.ctx.layers.size(chain) for chain in image.chain_ids]

    def unused_images(self, *, everything: bool) -> list[str]:
        """Ids of images that no workload uses and (unless ``everything``) no reference names."""
        from vmm.engine.maintenance import images_in_use

        used = images_in_use(self.ctx)
        return [
            image.id
            for image in self.images()
            if image.id not in used and (everything or not image.references)
        ]

    @makes_room
    def image_remove(self, reference: str, *, force: bool = False) -> list[str]:
        from vmm.engine import imaging

        return imaging.remove(self.ctx, reference, force=force)

    def tag(self, source: str, target: str) -> None:
        with self.ctx.lock("images"):
            self.ctx.images.tag(source, target)

    def import_image(self, path: str, reference: str, changes: list[str], message: str) -> Image:
        from vmm.engine import imaging

        return imaging.import_image(self.ctx, path, reference, changes, message)

    def bootstrap(self, name: str, reference: str, output: Callable[[str], None]) -> Image:
        from vmm.engine import imaging

        return imaging.bootstrap(self.ctx, name, reference, output)

    def build(self, request: BuildRequest, progress: Any) -> str:
        from vmm.engine import imaging

        return imaging.build(self.ctx, request, progress)

    # ---- volumes and networks

    def volume_create(self, name: str, labels: dict[str, str]) -> Volume:
        return self.ctx.volumes.create(name, labels)

    def volumes(self) -> list[Volume]:
        return self.ctx.volumes.list()

    def volume(self, name: str) -> tuple[Volume, str]:
        """The record and the path of its files."""
        return self.ctx.volumes.inspect(name), str(self.ctx.volumes.data(name))

    @makes_room
    def volume_remove(self, name: str, *, force: bool = False) -> None:
        from vmm.engine.maintenance import volumes_in_use
        from vmm.model.errors import Conflict

        users = volumes_in_use(self.ctx).get(name)
        if users:
            raise Conflict(
                f"remove {name}: volume is in use - [{', '.join(users)}]",
                f"remove the workloads first: vmm rm {' '.join(users)}",
            )
        try:
            self.ctx.volumes.remove(name)
        except NotFound:
            if not force:
                raise

    def used_volumes(self) -> set[str]:
        """Names of the volumes that workloads mount."""
        from vmm.engine.maintenance import volumes_in_use

        return set(volumes_in_use(self.ctx))

    @makes_room
    def volume_prune(self, *, everything: bool = False) -> list[str]:
        from vmm.engine.maintenance import volumes_in_use

        return list(self.ctx.volumes.prune(volumes_in_use(self.ctx), everything=everything)[0])

    def networks(self) -> list[NetworkRecord]:
        return list(self.ctx.network.list())

    def network(self, name: str) -> NetworkRecord:
        return self.ctx.network.inspect(name)

    # ---- kernels and hypervisors of guests

    def kernels(self) -> list[dict[str, Any]]:
        """Every kernel that guests can boot; the default one is marked."""
        from vmm.engine import kernels

        return kernels.rows(self.ctx)

    def kernel_add(self, file: str, *, modules: str = "", name: str = "") -> str:
        from vmm.engine import kernels

        return kernels.add(self.ctx, file, modules=modules, name=name)

    def kernel_fetch(self, package: str, *, name: str, say: Callable[[str], None]) -> str:
        from vmm.engine import kernels

        return kernels.fetch(self.ctx, package, name=name, say=say)

    @makes_room
    def kernel_remove(self, name: str) -> None:
        from vmm.engine import kernels

        kernels.remove(self.ctx, name)

    def libvirt_start(self) -> list[str]:
        """Start libvirt's daemons where no service manager does; what was done."""
        from vmm.engine import hypervisor

        return hypervisor.start(self.settings.libvirt_uri)

    def libvirt_stop(self) -> list[str]:
        from vmm.engine import hypervisor

        return hypervisor.stop(self.settings.libvirt_uri)

    def libvirt_status(self) -> tuple[list[str], bool]:
        from vmm.engine import hypervisor

        return hypervisor.status(self.settings.libvirt_uri)

    # ---- the instance

    def info(self) -> dict[str, Any]:
        from vmm.engine import maintenance

        return maintenance.info(self.ctx)

    def warnings(self) -> list[str]:
        from vmm.engine import maintenance

        return maintenance.warnings(self.ctx)

    def df(self) -> list[dict[str, Any]]:
        from vmm.engine import maintenance

        return maintenance.df(self.ctx)

    @makes_room
    def check(self, *, repair: bool = False) -> list[str]:
        from vmm.engine.check import check

        return check(self.ctx, repair=repair)

    @makes_room
    def rebuild(self) -> list[str]:
        from vmm.engine import guests

        guests.check_documents(self.ctx, repair=True)
        return self.ctx.rebuild_index()

    @makes_room
    def prune(self, *, all_images: bool = False, volumes: bool = False) -> dict[str, Any]:
        from vmm.engine import maintenance

        return maintenance.prune(self.ctx, all_images=all_images, volumes=volumes)

    @makes_room
    def boot(self) -> list[str]:
        from vmm.engine import maintenance

        return maintenance.boot(self.ctx)

    def teardown(self) -> None:
        """Remove what the instance has in the kernel when nothing runs: bridge, rules."""
        if not self.ctx.network.teardown():
            raise VmmError("workloads are attached to the bridge", "stop them first: vmm stop")

    def backends(self) -> list[tuple[str, list[Capability]]]:
        from vmm.engine import backends

        return backends.probe(self.ctx.options)
