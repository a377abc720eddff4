"""First figures: whole commands of vmm, its runtime core, and runc beside it, in one run.

Prints min/median/max in milliseconds of wall time, CPU time of the command and its children,
and ratios of medians.  Run as root: ``make bench``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", "15"))
HERE = Path(__file__).parent
NAMESPACE = f"vmmbench-{os.getpid()}"


def measure(action: Callable[[], object]) -> tuple[list[float], float]:
    """Wall times (ms) of ROUNDS calls after one that warms up, and CPU ms of each on average."""
    action()
    walls = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        walls.append((time.perf_counter() - begin) * 1000)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return walls, cpu * 1000 / ROUNDS


def call(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def report(name: str, walls: list[float], cpu: float) -> float:
    median = statistics.median(walls)
    print(f"{name:42} {min(walls):8.1f} {median:8.1f} {max(walls):8.1f} {cpu:9.1f}")
    return median


def bundle(directory: Path, root: Path) -> None:
    """An OCI bundle as `runc spec` makes it, without a terminal, running true."""
    subprocess.run(["runc", "spec", "-b", str(directory)], check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["true"]}
    config["root"] = {"path": str(root), "readonly": True}
    (directory / "config.json").write_text(json.dumps(config))


def pss(pid: int) -> int:
    """Proportional set size in KiB (proc_pid_smaps_rollup(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="vmm-bench-"))
    vmm = [
        "nsenter", f"--net=/run/netns/{NAMESPACE}",
        str(Path(sys.executable).with_name("vmm")), "--root", str(work / "root"),
    ]  # fmt: skip
    call("ip", "netns", "add", NAMESPACE)
    try:
        call("ip", "-n", NAMESPACE, "link", "set", "lo", "up")
        call(*vmm, "image", "bootstrap", "busybox")
        run(vmm, work)
    finally:
        subprocess.run([*vmm, "rm", "-f", "idle"], capture_output=True, check=False)
        subprocess.run([*vmm, "system", "teardown"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)
        shutil.rmtree(work, ignore_errors=True)


def run(vmm: list[str], work: Path) -> None:
    print(f"{ROUNDS} rounds; load {os.getloadavg()[0]:.2f}; Linux {os.uname().release}")
    print(f"{'':42} {'min':>8} {'median':>8} {'max':>8} {'CPU':>9}   (ms)")
    report("vmm --help", *measure(lambda: call(vmm[2], "--help")))
    report("python -c pass", *measure(lambda: call(sys.executable, "-c", "pass")))
    for network in ("none", "bridge"):
        line = [*vmm, "run", "--rm", "--network", network, "busybox", "true"]
        report(f"vmm run --rm --network {network} busybox true", *measure(lambda: call(*line)))  # noqa: B023
    call(*vmm, "run", "-d", "--name", "idle", "busybox", "sleep", "100000")
    report("vmm exec idle true", *measure(lambda: call(*vmm, "exec", "idle", "true")))
    report("vmm ps", *measure(lambda: call(*vmm, "ps")))
    shims = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _is_shim(p, work)]
    print(f"{'PSS of an idle shim':42} {pss(int(shims[0].parent.name)):8} KiB")
    core(vmm, work)


def _is_shim(path: Path, work: Path) -> bool:
    try:
        command = path.read_bytes()
    except OSError:
        return False
    return b"vmm-shim" in command and os.fsencode(work) in command


def core(vmm: list[str], work: Path) -> None:
    """The native launcher alone against runc on the same root."""
    launch = HERE.parent / "build/native/vmm-launch"
    subprocess.run(["make", "-s", "-C", str(HERE.parent / "native")], check=True)
    call(*vmm, "create", "--name", "core", "--network", "none", "busybox", "true")
    plan = work / "core.plan"
    inspected = subprocess.run([*vmm, "inspect", "core"], capture_output=True, check=True)
    identity = json.loads(inspected.stdout)[0]["Id"]
    call(*vmm, "start", "core")
    shutil.copy(work / "root/workloads" / identity / "launch.plan", plan)
    call(*vmm, "wait", "core")
    ours = report("vmm-launch (runtime core)", *measure(lambda: call(str(launch), str(plan))))
    call(*vmm, "rm", "core")
    if shutil.which("runc") is None:
        print("runc: not installed, not measured")
        return
    layers = sorted((work / "root/layers").glob("*/bin/busybox"))
    (work / "bundle").mkdir()
    bundle(work / "bundle", layers[0].parent.parent)
    line = ["runc", "--root", str(work / "runc"), "run", "-b", str(work / "bundle"), "bench"]
    theirs = report("runc run (same root, read-only)", *measure(lambda: call(*line)))
    print(f"{'ratio vmm-launch / runc (medians)':42} {ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
