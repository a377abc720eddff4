"""Base images without a registry: from the packages of the host's own distribution."""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from vmm.image import reference as refs
from vmm.image.aptconfig import apt_settings, debian_sources
from vmm.image.rootfs import busybox_tar
from vmm.image.store import ImageStore
from vmm.model.errors import HostError, UsageError
from vmm.model.image import ContainerConfig, Image
from vmm.ports.runner import Runner

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SUITE = re.compile(r"[a-z][a-z0-9-]{1,30}\Z")
#: mmdebstrap copies these from the host; every launch mounts its own.
_FORGET_HOST = 'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'
_MINUTES = 60
_KNOWN = "known are: busybox, debian:SUITE (debian:bookworm)"

Say = Callable[[str], None]


def bootstrap(
    name: str,
    runner: Runner,
    store: ImageStore,
    *,
    reference: str = "",
    say: Say = lambda line: None,
) -> Image:
    """Make the base image ``name`` and store it as ``reference`` (default: ``name``).

    ``busybox`` comes from Debian's busybox-static, ``debian:SUITE`` from mmdebstrap with the
    host's own apt sources, keys and proxies.  ``say`` gets a line before each long step.
    """
    wanted = refs.parse(name, refs.DEFAULT_DOMAIN)
    base = wanted.path.removeprefix(refs.OFFICIAL)
    if wanted.domain != refs.DEFAULT_DOMAIN or base not in ("busybox", "debian"):
        raise UsageError(f"no recipe to make {name!r:.100} from packages", _KNOWN)
    if base == "debian" and (wanted.tag == refs.DEFAULT_TAG or not _SUITE.match(wanted.tag)):
        raise UsageError(f"{name!r:.100} names no Debian suite", _KNOWN)
    with tempfile.TemporaryDirectory(prefix="vmm-bootstrap-") as directory:
        work = Path(directory)
        if base == "busybox":
            return _busybox(runner, store, reference or name, work, say)
        return _debian(wanted.tag, runner, store, reference or name, work, say)


def _debian(
    suite: str, runner: Runner, store: ImageStore, reference: str, work: Path, say: Say
) -> Image:
    if shutil.which("mmdebstrap") is None:
        raise HostError("mmdebstrap is not installed", "install it: apt-get install mmdebstrap")
    sources = work / "host.sources"
    sources.write_text(debian_sources(suite), encoding="utf-8")
    tar = work / "root.tar"
    argv = ["mmdebstrap", "--variant=minbase", "--mode=root", "--format=tar", "--quiet"]
    argv += [f"--aptopt={line}" for line in apt_settings(runner)]
    argv += _keys(sources.read_text(encoding="utf-8"))
    argv.append("--customize-hook=" + _FORGET_HOST)
    say(f"mmdebstrap: installing {suite} (about a minute)")
    runner.run([*argv, suite, str(tar), str(sources)], timeout=60 * _MINUTES)
    say("storing the image")
    config = ContainerConfig(env=[_PATH], cmd=["bash"])
    return store.import_tar(tar, reference, config=config, message=f"mmdebstrap {suite}")


def _keys(sources: str) -> list[str]:
    """Keys that the sources name outside of the keyring package are copied into the image."""
    hooks = []
    for path in sorted(set(re.findall(r"(?im)^signed-by:\s*(/\S+)", sources))):
        if not path.startswith("/usr/share/keyrings/debian-archive") and os.path.isfile(path):
            where = os.path.dirname(path)
            hooks += [f'--customize-hook=mkdir -p "$1{where}" && cp \'{path}\' "$1{where}/"']
    return hooks


def _busybox(runner: Runner, store: ImageStore, reference: str, work: Path, say: Say) -> Image:
    program = Path("/bin/busybox")
    if not is_static(program):
        say("downloading the package busybox-static")
        program = _downloaded(runner, work)
    applets = runner.run([str(program), "--list"]).decode().split()
    tar = work / "root.tar"
    with open(tar, "wb") as file:
        busybox_tar(file, program.read_bytes(), applets)
    config = ContainerConfig(env=[_PATH], cmd=["sh"])
    return store.import_tar(tar, reference, config=config, message="busybox-static")


def _downloaded(runner: Runner, work: Path) -> Path:
    work.chmod(0o755)  # apt downloads as its own user
    if shutil.which("apt-get") is None:
        raise HostError("there is no static /bin/busybox, and no apt-get to get one")
    runner.run(["env", "-C", str(work), "apt-get", "download", "busybox-static"], timeout=600)
    packages = sorted(work.glob("busybox-static_*.deb"))
    if not packages:
        raise HostError("apt-get downloaded no busybox-static", "run apt-get update first")
    runner.run(["dpkg-deb", "-x", str(packages[-1]), str(work / "package")])
    found = [work / "package" / p for p in ("bin/busybox", "usr/bin/busybox")]
    for program in found:
        if is_static(program):
            return program
    raise HostError("the package busybox-static holds no static busybox")


def is_static(program: Path) -> bool:
    """Whether an ELF file needs no program interpreter (elf(5): no PT_INTERP)."""
    try:
        with open(program, "rb") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":
                return False
            offset = struct.unpack_from("<Q", head, 32)[0]
            size, count = struct.unpack_from("<HH", head, 54)
            file.seek(offset)
            table = file.read(size * count)
    except (OSError, struct.error):
        return False
    return all(struct.unpack_from("<I", table, at)[0] != 3 for at in range(0, len(table), size))
