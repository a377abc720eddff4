"""``vmm kernel`` above the store: what is shown, and what a running guest keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.engine import kernels
from vmm.engine.context import Context, boot_id, start_ticks
from vmm.guest.kernels import Kernel
from vmm.guest.roots import KERNEL_NAME
from vmm.model.errors import Conflict, UsageError
from vmm.model.spec import WorkloadSpec
from vmm.model.state import State, Status
from vmm.settings import Settings
from vmm.storage.tree import remove_tree

GUEST = "5" * 64


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    made = Context(Settings(root=str(tmp_path / "root")))
    yield made
    remove_tree(str(made.run_dir))


@pytest.fixture
def own(ctx: Context, kernel: Kernel) -> str:
    return kernels.add(ctx, kernel.path, modules=kernel.modules, name="mine")


def guest(ctx: Context, status: Status, booted: str) -> None:
    """A guest on record, with this process in the place of its shim."""
    ctx.index.add(GUEST, "web", 1)
    ctx.store.path(GUEST).mkdir()
    spec = WorkloadSpec(id=GUEST, name="web", backend="qemu", image="x", image_id="y", created=1)
    ctx.store.write(spec)
    (ctx.store.path(GUEST) / KERNEL_NAME).write_text(booted)
    pid = os.getpid()
    state = State(status=status, boot_id=boot_id(), shim_pid=pid, shim_start=start_ticks(pid))
    ctx.store.write_state(GUEST, state)


def rows(ctx: Context) -> dict[str, str]:
    return {row["Name"]: row["Default"] for row in kernels.rows(ctx) if row["Source"] == "own"}


def test_a_kernel_is_listed_and_removed(ctx: Context, own: str) -> None:
    assert rows(ctx) == {"mine": "*"}
    kernels.remove(ctx, own)
    assert rows(ctx) == {}


def test_the_setting_chooses(ctx: Context, own: str, kernel: Kernel, tmp_path: Path) -> None:
    kernels.add(ctx, kernel.path, modules=kernel.modules, name="newer")
    assert rows(ctx) == {"newer": "*", "mine": ""}
    chosen = Context(Settings(root=str(tmp_path / "root"), kernel="mine"))
    assert rows(chosen) == {"newer": "", "mine": "*"}


def test_a_running_guest_keeps_its_kernel(ctx: Context, own: str) -> None:
    guest(ctx, "running", own)
    with pytest.raises(Conflict, match="mine is in use by web"):
        kernels.remove(ctx, own)
    assert rows(ctx) == {"mine": "*"}


def test_a_stopped_guest_does_not(ctx: Context, own: str) -> None:
    guest(ctx, "exited", own)
    kernels.remove(ctx, own)
    assert rows(ctx) == {}


def test_modules_beside_a_package_are_refused(ctx: Context) -> None:
    with pytest.raises(UsageError, match="--modules"):
        kernels.add(ctx, "some.deb", modules="/lib/modules/x")
