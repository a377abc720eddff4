"""Fixtures of the tests that run the same bodies on every backend."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.behaviour.cases import Stage
from tests.conftest import made_namespace
from tests.instance import Instance


@pytest.fixture(scope="session")
def machines(worker: str) -> Iterator[Instance]:
    """An instance that runs containers and guests, with a libvirt in its own network namespace.

    Its root is where QEMU's user may go, which is not so for pytest's own directories.
    """
    directory = Path(tempfile.mkdtemp(prefix="vmm-guests-", dir="/var/tmp"))
    directory.chmod(0o711)
    name = f"vmmtest-{os.getpid()}-{worker}-guests"
    made = Instance(directory / "root", name)
    try:
        with made_namespace(name), _libvirt(made):
            made.run("image", "bootstrap", "busybox")
            _fetch_kernel(made)
            yield made
            made.run("system", "teardown", check=False)
            left = made.traces(everything=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(made.run_dir, ignore_errors=True)
    assert left == []


def _fetch_kernel(instance: Instance) -> None:
    """From the host's own network: the instance's namespace leads nowhere."""
    argv = instance.argv("kernel", "fetch")[len(instance.enter) :]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def _libvirt(instance: Instance) -> Iterator[None]:
    """libvirt's daemons in the instance's network namespace, for this session alone."""
    status = instance.run("system", "libvirt", "status", check=False)
    assert status.returncode == 3, f"another libvirtd runs on this machine: {status.stdout}"
    instance.run("system", "libvirt", "start", timeout=120)
    try:
        yield
    finally:
        instance.run("system", "libvirt", "stop", timeout=60)


@pytest.fixture(scope="module", params=["container", "qemu"])
def stage(
    request: pytest.FixtureRequest, machines: Instance, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """The shared workload of one backend; nothing may be left of it."""
    made = Stage(machines, request.param, tmp_path_factory.mktemp(request.param) / "files")
    try:
        made.make()
        yield made
    finally:
        for workload in machines.run("ps", "-aq", "--no-trunc").stdout.split():
            machines.run("rm", "-fv", workload)
        machines.run("volume", "rm", made.volume)
    assert machines.traces() == []
