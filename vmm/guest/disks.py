"""Writable disks: sparse files with an empty ext4, made in a few milliseconds."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from pathlib import Path

from vmm.model.errors import CorruptStore, HostError, UsageError
from vmm.ports.files import sync_directory
from vmm.ports.runner import Runner
from vmm.ports.space import exhausted

#: Written out, so that neither mke2fs.conf nor a newer mke2fs adds what an older kernel lacks.
#: A journal, because guests are switched off at any moment; no space kept for resizing.
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)
_SMALLEST = 16 << 20
#: Of the superblock: number of blocks (low), log2 of their size less 10, magic, number of blocks
#: (high) (Linux, fs/ext4/ext4.h, struct ext4_super_block).
_SUPERBLOCK = struct.Struct("<1024x4xI16xI28xH278xI")
_MAGIC = 0xEF53
_PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def make_disk(path: str, size: int, runner: Runner, *, uid: int, gid: int) -> None:
    """An empty disk of ``size`` bytes at ``path``, 0600 of ``uid:gid``; less than 300 KiB of it
    are there before anything is written.  One that is there already is kept, its owner set;
    CorruptStore if it was damaged."""
    if os.path.exists(path):
        check_disk(path)
        _own(path, uid, gid)
        return
    if size < _SMALLEST:
        raise UsageError(
            f"a disk of {size} bytes is too small", f"guest_disk: at least {_SMALLEST}"
        )
    made = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(made)
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size // 4096 * 4096)
        _format(made, size, runner)
        _own(made, uid, gid)
        os.fsync(fd)
        os.rename(made, path)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)
    sync_directory(os.path.dirname(path))


def head_of(path: Path | str, length: int) -> tuple[bytes, int]:
    """The first ``length`` bytes of a disk's or an image's file, and the bytes it has."""
    with open(path, "rb") as file:
        return file.read(length), os.fstat(file.fileno()).st_size


def check_disk(path: str) -> None:
    """CorruptStore unless a disk is there with all its blocks; its content is not looked at."""
    try:
        head, size = head_of(path, _SUPERBLOCK.size)
    except FileNotFoundError:
        raise _lost(path, "the guest's disk is gone, and what it wrote with it") from None
    if len(head) < _SUPERBLOCK.size:
        raise _lost(path, f"the guest's disk was cut to {size} bytes")
    low, block_bits, magic, high = _SUPERBLOCK.unpack(head)
    if magic != _MAGIC:
        raise _lost(path, "the guest's disk was overwritten: it has no ext4 any more")
    whole = (high << 32 | low) << 10 + block_bits
    if size < whole:
        raise _lost(path, f"the guest's disk was cut to {size} bytes of {whole}")


def _lost(path: str, what: str) -> CorruptStore:
    workload = os.path.basename(os.path.dirname(path))[:12]
    return CorruptStore(
        f"{path}: {what}",
        f"put it back from a copy; or give it up: vmm rm {workload}, and run the image anew "
        "(volumes and bind mounts are not touched)",
    )


def _format(path: str, size: int, runner: Runner) -> None:
    try:
        runner.run(_mke2fs(path, size))
    except HostError as error:
        raise exhausted(path) or error from None


def _mke2fs(path: str, size: int) -> list[str]:
    program = shutil.which("mke2fs", path=_PATHS) or "mke2fs"
    # Nothing is initialised that is a hole already: inode tables, journal.
    lazy = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    journal = "16" if size >= 1 << 30 else "4"
    options = ["-b", "4096", "-I", "256", "-m", "0", "-J", f"size={journal}", "-E", lazy]
    return [program, "-q", "-F", "-t", "ext4", "-O", _FEATURES, *options, path]


def _own(path: str, uid: int, gid: int) -> None:
    status = os.stat(path)
    if (status.st_uid, status.st_gid) != (uid, gid):
        os.chown(path, uid, gid)
