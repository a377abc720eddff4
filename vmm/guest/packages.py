"""Kernels from packages: a file ``.deb``, or the distribution's through apt."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vmm.guest.kernels import Kernel, KernelStore
from vmm.model.errors import HostError, UsageError
from vmm.model.platform import architecture as architecture_of
from vmm.ports.runner import Runner
from vmm.ports.space import exhausted

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,100}\Z")
_DEPENDS = re.compile(r"^Depends:(.*)$", re.MULTILINE)
_KERNEL = re.compile(r"\b(linux-image-\d[a-z0-9+.~-]*)")
_DEBIAN = {"386": "i386", "arm": "armhf", "ppc64le": "ppc64el"}

Say = Callable[[str], None]


def default_package() -> str:
    """Debian's kernel for virtual machines of the host's architecture."""
    name = architecture_of(os.uname().machine)
    return f"linux-image-cloud-{_DEBIAN.get(name, name)}"


def fetch(
    store: KernelStore,
    runner: Runner,
    package: str = "",
    *,
    name: str = "",
    say: Say = lambda line: None,
) -> Kernel:
    """Download a kernel package through the host's apt, which checks its signature, and add it.

    A package that only depends on the newest kernel is followed.  Nothing of it is executed.
    """
    package = package or default_package()
    if not _NAME.match(package):
        raise UsageError(f"{package!r:.100} is not a package name")
    if shutil.which("apt-get") is None:
        raise HostError(
            "there is no apt-get to fetch a kernel with", "vmm kernel add FILE --modules DIRECTORY"
        )
    real = _followed(package, runner)
    with tempfile.TemporaryDirectory(prefix="vmm-kernel-") as directory:
        work = Path(directory)
        work.chmod(0o755)  # apt downloads as its own user
        say(f"downloading the package {real}")
        try:
            runner.run(["env", "-C", str(work), "apt-get", "-q", "download", real], timeout=1800)
        except HostError as error:
            raise exhausted(work) or error from None
        found = sorted(work.glob("*.deb"))
        if not found:
            raise HostError(f"apt-get downloaded no {real}", "run apt-get update first")
        say("adding the kernel")
        return add_package(store, runner, found[-1], name=name)


def add_package(store: KernelStore, runner: Runner, deb: Path, *, name: str = "") -> Kernel:
    """Add the kernel inside a Debian package; its maintainer scripts are not run."""
    if not deb.is_file():
        raise UsageError(f"{deb}: no such file")
    store.root.mkdir(mode=0o710, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=store.root) as directory:
        root = Path(directory)
        try:
            runner.run(["dpkg-deb", "-x", str(deb), str(root)], timeout=600)
        except HostError as error:
            raise exhausted(root) or error from None
        images = sorted(root.glob("boot/vmlinu[xz]-*"))
        if not images:
            raise UsageError(f"{deb}: a package without a kernel in /boot")
        version = images[0].name.partition("-")[2]
        places = [root / "usr/lib/modules" / version, root / "lib/modules" / version]
        modules = next((place for place in places if (place / "kernel").is_dir()), "")
        return store.add(images[0], modules, name)


def _followed(package: str, runner: Runner) -> str:
    """The package with the kernel that a package without one depends on."""
    try:
        text = runner.run(["apt-cache", "show", "--no-all-versions", package]).decode()
    except HostError:
        raise HostError(
            f"apt knows no package {package}", "run apt-get update, or name another package"
        ) from None
    match = _DEPENDS.search(text)
    needed = _KERNEL.search(match[1]) if match else None
    return needed[1] if needed else package
