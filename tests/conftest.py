"""Fixtures: an instance of vmm in a network namespace of its own that must leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance

REPO = Path(__file__).parent.parent
SHARED = Path(os.environ.get("VMM_TEST_SHARED", REPO.parent / "shared"))
ALLOWED = {
    entry["reason"] for entry in tomllib.loads((REPO / "tests/skips.toml").read_text())["skip"]
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first; what needs root says so once here."""
    if os.geteuid() == 0:
        return
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="not root"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With CI=true a skip that is not listed in skips.toml is a failure."""
    if not report.skipped or os.environ.get("CI") != "true" or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
    if reason.removeprefix("Skipped: ") not in ALLOWED:
        report.outcome = "failed"
        report.longrepr = f"a skip that tests/skips.toml does not list: {reason}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test data from outside; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("test data is not here")
    return SHARED


@pytest.fixture(scope="session")
def namespace(worker: str) -> Iterator[str]:
    """A network namespace, with a loopback interface and a dummy uplink to nowhere."""
    with made_namespace(f"vmmtest-{os.getpid()}-{worker}") as name:
        yield name


@contextlib.contextmanager
def made_namespace(name: str) -> Iterator[str]:
    """A network namespace of this name while it is needed."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    inside = ["ip", "-n", name]
    subprocess.run([*inside, "link", "set", "lo", "up"], check=True)
    up = ["link", "add", "up0", "type", "veth", "peer", "name", "up1"]
    subprocess.run([*inside, *up], check=True)
    subprocess.run([*inside, "addr", "add", "198.51.100.1/24", "dev", "up0"], check=True)
    for link in ("up0", "up1"):
        subprocess.run([*inside, "link", "set", link, "up"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture(scope="session")
def worker() -> str:
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory, namespace: str) -> Iterator[Instance]:
    """The session's instance, with ``busybox`` bootstrapped; gone without a trace at the end."""
    made = Instance(tmp_path_factory.mktemp("vmm") / "root", namespace)
    made.run("image", "bootstrap", "busybox")
    try:
        yield made
    finally:
        made.run("system", "teardown", check=False)
        left = made.traces(everything=True)
        shutil.rmtree(made.root, ignore_errors=True)
        shutil.rmtree(made.run_dir, ignore_errors=True)
    assert left == []


@pytest.fixture
def vmm(instance: Instance) -> Iterator[Instance]:
    """The instance; whatever a test started is removed, and nothing may be left of it."""
    yield instance
    for workload in instance.run("ps", "-aq", "--no-trunc").stdout.split():
        instance.run("rm", "-fv", workload)
    if volumes := instance.run("volume", "ls", "-q").stdout.split():
        instance.run("volume", "rm", *volumes)
    assert instance.traces() == []
