"""Kernels for guests: those of an instance, and the host's own.

On disk, below the instance's ``kernels/``::

    <name>/vmlinuz       as it came
    <name>/modules/      modules.builtin and kernel/…, if it has modules
    <name>/kernel.json   its record; a kernel without one does not exist
    .new-<hex>/          one being made
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmm.guest.kernelimage import read_kernel
from vmm.guest.modules import Modules
from vmm.model.errors import Conflict, CorruptStore, HostError, NotFound, UsageError, VmmError
from vmm.model.ids import check_name
from vmm.model.platform import OLDEST_GUEST
from vmm.model.platform import architecture as architecture_of
from vmm.ports.files import atomic_write, locked, sync_directory
from vmm.ports.space import exhausted
from vmm.storage.tree import remove_tree

_RECORD = "kernel.json"
_FILE = "vmlinuz"
_MODULES = "modules"
_LARGEST = 1 << 30


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """A kernel a guest can boot; ``created`` in nanoseconds UTC, ``modules`` "" without any."""

    schema: int = 1
    name: str
    version: str
    architecture: str
    #: "own" or "host".
    source: str = "own"
    path: str = ""
    modules: str = ""
    created: int = 0
    #: What tells this kernel from another one of the same name.
    identity: str = ""

    @property
    def too_old(self) -> str:
        """Why no guest can boot it, "" if one can."""
        release = tuple(map(int, re.findall(r"\d+", self.version)[:2]))
        if release >= OLDEST_GUEST:
            return ""
        return f"Linux {self.version} is older than {'.'.join(map(str, OLDEST_GUEST))}"


Kernels = list[Kernel]


class KernelStore:
    """The kernels below ``root``, and those of the host."""

    def __init__(
        self,
        root: Path | str,
        *,
        boot: Path | str = "/boot",
        modules: Path | str = "/lib/modules",
    ) -> None:
        self.root = Path(root)
        self._boot, self._host_modules = Path(boot), Path(modules)

    def list(self) -> Kernels:
        """All kernels, own ones first, the newest of each first."""
        own = sorted(self._own(), key=lambda kernel: -kernel.created)
        names = {kernel.name for kernel in own}
        return [*own, *(kernel for kernel in self._of_host() if kernel.name not in names)]

    def get(self, name: str) -> Kernel:
        """The kernel called ``name``."""
        for kernel in self.list():
            if kernel.name == name:
                return kernel
        raise NotFound("kernel", f"{name:.100}", "vmm kernel ls lists them")

    def choose(self, name: str = "", architecture: str = "") -> Kernel:
        """The kernel called ``name``, else the newest own one, else the host's; it is for
        ``architecture`` (GOARCH; "": the host's)."""
        wanted = architecture or architecture_of(os.uname().machine)
        if name:
            kernel = self.get(name)
            if kernel.architecture != wanted:
                raise HostError(
                    f"kernel {name} is for {kernel.architecture}, the guest for {wanted}",
                    "choose another one (vmm kernel ls) by the setting kernel",
                )
            if kernel.too_old:
                raise HostError(
                    f"kernel {name}: {kernel.too_old}",
                    "choose another one (vmm kernel ls) by the setting kernel",
                )
            return kernel
        found = [kernel for kernel in self.list() if kernel.architecture == wanted]
        for kernel in found:
            if not kernel.too_old:
                return kernel
        old = f" ({found[0].too_old})" if found else ""
        raise HostError(
            f"there is no {wanted} kernel that a guest could boot{old}",
            "get the distribution's: vmm kernel fetch; or: vmm kernel add FILE --modules DIRECTORY",
        )

    def add(self, file: Path | str, modules: Path | str = "", name: str = "") -> Kernel:
        """Take a kernel file, and the directory of its modules (``/lib/modules/VERSION``)."""
        image = read_kernel(file)
        directory = self._modules_of(modules, image.version) if modules else None
        if directory is not None:
            Modules(directory).ordered()
        name = check_name(name or _name_of(image.version), "kernel name")
        with self._new() as made:
            _copy_file(Path(file), made / _FILE)
            if directory is not None:
                _copy_modules(directory, made / _MODULES)
            kernel = Kernel(
                name=name,
                version=image.version,
                architecture=image.architecture,
                created=time.time_ns(),
                identity=_digest(made / _FILE),
            )
            if kernel.too_old:
                raise UsageError(f"{file}: {kernel.too_old}", "guests need a newer one")
            return self._keep(made, kernel)

    def remove(self, name: str) -> None:
        """Remove a kernel of the instance; the host's own are not ours to remove."""
        if self.get(name).source == "host":
            raise Conflict(
                f"kernel {name} belongs to the host",
                "remove its package, or choose another one by the setting kernel",
            )
        doomed = self.root / f".new-{os.urandom(8).hex()}"
        with self._locked():
            self.get(name)  # another command may have been quicker
            os.unlink(self.root / name / _RECORD)
            os.rename(self.root / name, doomed)
        remove_tree(str(doomed))

    def prune_temporary(self) -> int:
        """Remove what killed commands left; the number of directories removed."""
        if not self.root.is_dir():
            return 0
        removed = 0
        with self._locked():
            for path in self.root.iterdir():
                unfinished = path.is_dir() and not (path / _RECORD).exists()
                if unfinished and _is_old(path):
                    remove_tree(str(path))
                    removed += 1
        return removed

    def _own(self) -> Iterator[Kernel]:
        for path in sorted(self.root.glob(f"[!.]*/{_RECORD}")):
            with contextlib.suppress(msgspec.MsgspecError, FileNotFoundError):
                kernel = msgspec.json.decode(path.read_bytes(), type=Kernel)
                directory = path.parent
                modules = directory / _MODULES
                yield msgspec.structs.replace(
                    kernel,
                    name=directory.name,
                    source="own",
                    path=str(directory / _FILE),
                    modules=str(modules) if modules.is_dir() else "",
                )

    def _of_host(self) -> Iterator[Kernel]:
        """Kernels in /boot whose modules are there too, the newest version first."""
        found = [path for path in self._boot.glob("vmlinuz-*") if os.access(path, os.R_OK)]
        for path in sorted(found, key=lambda path: _version_key(path.name), reverse=True):
            try:
                image = read_kernel(path)
            except VmmError:
                continue
            modules = self._host_modules / image.version
            if (modules / "kernel").is_dir():
                status = path.stat()
                yield Kernel(
                    name=_name_of(image.version),
                    version=image.version,
                    architecture=image.architecture,
                    source="host",
                    path=str(path),
                    modules=str(modules),
                    created=status.st_mtime_ns,
                    identity=f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}",
                )

    @staticmethod
    def _modules_of(directory: Path | str, version: str) -> Path:
        """The directory that holds ``kernel/``: the given one, or the version's below it."""
        given = Path(directory)
        for path in (given, given / version, given / "lib" / "modules" / version):
            if (path / "kernel").is_dir():
                if (path / "modules.builtin").is_file():
                    return path
                raise UsageError(
                    f"{path}: no modules.builtin in it",
                    "it is part of a kernel's modules; without it what is built in is not known",
                )
        raise UsageError(
            f"{given}: no modules of kernel {version} in it", "give its /lib/modules/VERSION"
        )

    def _keep(self, made: Path, kernel: Kernel) -> Kernel:
        atomic_write(made / _RECORD, msgspec.json.encode(kernel), 0o640)
        for directory, _, _ in os.walk(made):
            sync_directory(directory)
        with self._locked():
            place = self.root / kernel.name
            if (place / _RECORD).exists():
                raise Conflict(
                    f"there is a kernel {kernel.name} already",
                    f"remove it first (vmm kernel rm {kernel.name}), or give another --name",
                )
            if place.exists():  # its removal, or its making, was cut off
                remove_tree(str(place))
            os.rename(made, place)
            sync_directory(str(self.root))
        return self.get(kernel.name)

    @contextlib.contextmanager
    def _new(self) -> Iterator[Path]:
        """A directory that is gone at the end unless renamed."""
        self.root.mkdir(mode=0o710, parents=True, exist_ok=True)
        path = self.root / f".new-{os.urandom(8).hex()}"
        path.mkdir(mode=0o710)
        try:
            yield path
        finally:
            remove_tree(str(path))

    def _locked(self) -> contextlib.AbstractContextManager[int]:
        return locked(self.root / ".lock")


def _copy_file(source: Path, target: Path) -> None:
    size = source.stat().st_size
    if size > _LARGEST:
        raise CorruptStore(f"{source}: {size} bytes are too many for a kernel")
    shutil.copyfile(source, target)
    target.chmod(0o640)
    fd = os.open(target, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_modules(source: Path, target: Path) -> None:
    """The modules and the lists of kbuild; links ("build", "source") lead elsewhere."""
    target.mkdir(mode=0o700)
    for name in ("modules.builtin", "modules.order"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    ignored = lambda directory, names: [  # noqa: E731
        name for name in names if os.path.islink(os.path.join(directory, name))
    ]
    try:
        shutil.copytree(source / "kernel", target / "kernel", ignore=ignored)
    except shutil.Error as error:  # one text of every file's failure
        reason = HostError(f"{source}: not copied: {str(error)[:300]}")
        raise exhausted(target) or reason from None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name_of(version: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]", "_", version)


def _version_key(text: str) -> list[tuple[int, str]]:
    """Sorts 6.10 after 6.9."""
    parts = re.findall(r"\d+|\D+", text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _is_old(path: Path) -> bool:
    """Whether nobody can be making it any more."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > 3600
    return False
