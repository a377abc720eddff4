"""The first root of a guest: modules in order, read from the modules themselves."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
from pathlib import Path

import pytest

from vmm.guest.initramfs import initramfs
from vmm.guest.kernels import Kernel
from vmm.guest.modules import REQUIRED, Modules, module_info, module_name
from vmm.model.errors import CorruptStore, HostError


def make_module(directory: Path, name: str, *depends: str) -> Path:
    """An object file with the section that modules have."""
    path = directory / "kernel" / f"{name}.ko"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"license=GPL\\0depends={','.join(depends)}\\0"
    source = f'.section .modinfo,"a"\n.ascii "{text}"\n'
    subprocess.run(
        ["cc", "-c", "-x", "assembler", "-o", str(path), "-"], input=source.encode(), check=True
    )
    return path


def test_each_module_comes_after_what_it_needs(kernel: Kernel) -> None:
    modules = Modules(kernel.modules)
    order = modules.ordered()
    assert set(REQUIRED) <= set(order) | modules.built_in
    for place, name in enumerate(order):
        content = modules.content(name)
        needed = re.search(rb"\0depends=([^\0]*)", content)
        assert needed is not None
        for other in filter(None, needed[1].decode().replace("-", "_").split(",")):
            assert other in order[:place] or other in modules.built_in, (name, other)
    assert len(order) == len(set(order))


def test_the_archive_is_what_cpio_reads(kernel: Kernel, tmp_path: Path) -> None:
    modules = Modules(kernel.modules)
    order = modules.ordered()
    archive = initramfs(b"\x7fELF init", modules, order)
    done = subprocess.run(
        ["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stderr == b""
    assert (tmp_path / "init").read_bytes() == b"\x7fELF init"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    console = (tmp_path / "dev/console").stat()
    assert console.st_rdev == 5 << 8 | 1 and console.st_mode & 0o170777 == 0o020600
    listed = (tmp_path / "modules/order").read_text().split()
    assert listed == [f"{name}.ko" for name in order]
    for name in order:
        content = (tmp_path / f"modules/{name}.ko").read_bytes()
        assert content[:4] == b"\x7fELF"
        assert content == modules.content(name)
        assert b"Module signature appended" not in content


def test_dashes_and_underscores_are_one(tmp_path: Path) -> None:
    make_module(tmp_path, "virtio-rng", "rng-core")
    make_module(tmp_path, "rng_core")
    assert Modules(tmp_path).ordered(["virtio_rng"], ()) == ["rng_core", "virtio_rng"]
    assert module_name("kernel/drivers/char/virtio-rng.ko.xz") == "virtio_rng"


def test_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    make_module(tmp_path, "overlay", "one", "two-x")
    make_module(tmp_path, "two_x")
    (tmp_path / "modules.builtin").write_text("kernel/lib/one.ko\nkernel/fs/ext4/ext4.ko\n")
    assert Modules(tmp_path).ordered(["ext4", "overlay"], ()) == ["two_x", "overlay"]


def test_optional_ones_may_be_missing(tmp_path: Path) -> None:
    make_module(tmp_path, "a")
    assert Modules(tmp_path).ordered(["a"], ["absent"]) == ["a"]
    make_module(tmp_path, "absent")
    assert Modules(tmp_path).ordered(["a"], ["absent"]) == ["absent", "a"]


def test_a_missing_module_is_named_with_who_needs_it(tmp_path: Path) -> None:
    make_module(tmp_path, "net", "failover")
    with pytest.raises(HostError, match="lack failover, which net needs"):
        Modules(tmp_path).ordered(["net"], ())
    with pytest.raises(HostError, match=r"lack erofs\n"):
        Modules(tmp_path).ordered(["erofs"], ())


def test_modules_that_need_each_other(tmp_path: Path) -> None:
    make_module(tmp_path, "a", "b")
    make_module(tmp_path, "b", "a")
    with pytest.raises(CorruptStore, match="need each other"):
        Modules(tmp_path).ordered(["a"], ())


def test_compressed_modules_are_unpacked(tmp_path: Path) -> None:
    plain = make_module(tmp_path, "m")
    content = plain.read_bytes()
    plain.unlink()
    zst = subprocess.run(["zstd", "-qc"], input=content, check=True, capture_output=True).stdout
    for suffix, data in {"gz": gzip.compress(content), "xz": lzma.compress(content),
                         "zst": zst}.items():  # fmt: skip
        path = plain.with_suffix(f".ko.{suffix}")
        path.write_bytes(data)
        assert Modules(tmp_path).content("m") == content
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises((CorruptStore, HostError)):
            Modules(tmp_path).ordered(["m"], ())
        path.unlink()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "kernel" / "m.ko.gz"
    path.parent.mkdir()
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(Exception, match="more than 64 MiB"):
        Modules(tmp_path).ordered(["m"], ())


def test_what_is_no_module(tmp_path: Path) -> None:
    content = make_module(tmp_path, "m").read_bytes()
    for damaged in (b"", b"text", content[:100], content[:63], b"\x7fELF\x02\x01" + bytes(200)):
        with pytest.raises(CorruptStore, match=r"m\.ko: not a kernel module"):
            module_info(damaged, "m.ko")
