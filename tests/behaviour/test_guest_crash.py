"""``kill -9`` in the middle of a guest's life, libvirtd gone, and what others did to its files."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.instance import Instance, until
from tests.integration.test_crash import Case, batch, claims, gone, instants, kill_at

URI = "qemu:///system"
SECRET = "topsecret-3141"
#: Kills of each command; one of some commands by default.
KILLS = int(os.environ.get("VMM_TEST_KILLS", "0"))
SAMPLE = random.Random(21).sample

OPTIONS = ["--backend", "qemu", "--name", "c", "-v", "/anonymous", "-v", "{bind}:/bound:ro"]
COMMAND = [*OPTIONS, "-p", "127.0.0.1::80", "busybox", "sleep", "1000"]
CREATED, RUNNING = [["create", *COMMAND]], [["run", "-d", *COMMAND]]
CASES = [
    Case("create", ["create", *COMMAND]),
    Case("cp while it is off", ["cp", "{bind}", "c:/made"], CREATED),
    Case("start", ["start", "c"], CREATED),
    Case("run -d", ["run", "-d", *COMMAND]),
    Case("run --rm", ["run", "--rm", *OPTIONS, "busybox", "true"]),
    Case("stop", ["stop", "-t", "0", "c"], RUNNING),
    Case("kill", ["kill", "c"], RUNNING),
    Case("rm -f", ["rm", "-fv", "c"], RUNNING),
    Case("meta set", ["meta", "set", "c", "key=value"], CREATED),
    Case("update", ["update", "-m", "200m", "--restart", "always", "c"], RUNNING),
    Case("cp", ["cp", "{bind}", "c:/made"], RUNNING),
    Case("pause", ["pause", "c"], RUNNING),
    Case("rename", ["rename", "c", "d"], CREATED),
]


@pytest.fixture
def vmm(machines: Instance) -> Iterator[Instance]:
    yield machines
    machines.run("system", "libvirt", "start", timeout=60)
    emptied(machines, "at the end")


@pytest.fixture
def bind(tmp_path: Path) -> str:
    """A directory that XML and shells would trip over."""
    path = tmp_path / "a&b <c> 'd\" \n😀"
    path.mkdir()
    (path / "file").write_text("content\n")
    return str(path)


def domains(vmm: Instance) -> str:
    return vmm.inside("virsh", "-c", URI, "list", "--all").stdout


def left(vmm: Instance) -> list[str]:
    """What guests leave beside what any workload would: domains, shares, their daemons."""
    found = [line for line in domains(vmm).splitlines() if vmm.mark in line]
    text = Path("/proc/self/mountinfo").read_text()
    found += [line for line in text.splitlines() if str(vmm.run_dir) in line]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        found += [command] if f"{vmm.run_dir}/" in command else []
    found += [str(path) for path in vmm.root.rglob("*.new")]
    return found + [str(path) for path in vmm.root.rglob("*.tmp")]


def emptied(vmm: Instance, what: str) -> None:
    """Everything is removed as a user would, and then nothing is left."""
    (names,) = batch(vmm, ["ps", "-aq", "--no-trunc"])
    for name in names[1].split():
        (removed,) = batch(vmm, ["rm", "-fv", name])
        assert removed[0] == 0, (what, removed)
    pruned, volumes = batch(vmm, ["system", "prune", "-f"], ["volume", "ls", "-q"])
    assert (pruned[0], volumes[1]) == (0, ""), (what, pruned, volumes)
    assert vmm.traces() == [], what
    until(lambda: not left(vmm), 5)
    assert claims(vmm) == ([], []), what


def assert_understood(vmm: Instance, what: str) -> None:
    """After a kill: reading works, the next change too, repair mends all, rebuild agrees."""
    create = ["create", "--name", "next", "--network", "none", "busybox", "true"]
    read, listed, made, removed, repair, clean = batch(
        vmm, ["system", "check"], ["ps", "-a"], create, ["rm", "next"],
        ["system", "check", "--repair"], ["system", "check"],
    )  # fmt: skip
    assert read[0] in (0, 1) and "unexpected" not in read[2], (what, read)
    assert listed[0] == made[0] == removed[0] == repair[0] == 0, (what, listed, made, repair)
    assert clean == (0, "", ""), (what, repair, clean)
    before = claims(vmm)
    (rebuilt,) = batch(vmm, ["system", "rebuild"])
    assert rebuilt[0] == 0 and claims(vmm) == before, (what, rebuilt)


@pytest.mark.parametrize("case", CASES if KILLS else CASES[:3], ids=lambda case: case.name)
@pytest.mark.timeout(60 + 20 * KILLS)
def test_killed_at_any_instant(vmm: Instance, case: Case, bind: str, tmp_path: Path) -> None:
    def filled(argv: list[str]) -> list[str]:
        return [word.replace("{bind}", bind) for word in argv]

    def prepare() -> None:
        done = batch(vmm, *map(filled, case.before))
        assert all(one[0] == 0 for one in done), done

    prepare()
    found = instants(vmm, filled(case.argv), tmp_path / "log")
    emptied(vmm, case.name)
    for call, ordinal in SAMPLE(found, min(KILLS or 1, len(found))):
        what = f"{case.name} killed at {call} {ordinal}"
        prepare()
        kill_at(vmm, filled(case.argv), call, ordinal)
        assert_understood(vmm, what)
        emptied(vmm, what)


def test_libvirtd_is_killed(vmm: Instance, bind: str) -> None:
    """One boot; each command gives its result, or says what to do, in a moment."""
    start = ["run", "-d", "--backend", "qemu", "--name", "c", "-v", f"{bind}:/bound", "-v", "/a"]
    (ran,) = batch(vmm, [*start, "-e", f"KEY={SECRET}", "busybox", "sleep", "1000"])
    assert ran[0] == 0, ran
    workload = ran[1].strip()
    shown = vmm.inside("virsh", "-r", "-c", URI, "dumpxml", f"{vmm.mark}-{workload[:12]}").stdout
    assert workload in shown and SECRET not in shown
    daemon = int(Path("/run/libvirtd.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    gone(daemon)
    begun = time.monotonic()
    assert vmm.out("exec", "c", "cat", "/bound/file") == "content"
    listed, meta, renamed, paused, check, made = batch(
        vmm, ["ps", "--format", "{{.Names}} {{.State}}"],
        ["meta", "set", "c", "k=v"], ["rename", "c", "d"], ["pause", "d"], ["system", "check"],
        ["create", "--backend", "qemu", "busybox"],
    )  # fmt: skip
    assert time.monotonic() - begun < 10
    assert listed[1] == "c running\n"
    assert meta[0] == renamed[0] == 0 and "system check --repair" in meta[2]
    assert paused[0] == 1 and "vmm system libvirt start" in paused[2]
    assert check[0] == 1 and "no connection to libvirt" in check[1]
    assert made[0] == 125 and "vmm system libvirt start" in made[2]
    (stopped,) = batch(vmm, ["stop", "-t", "0", "d"])
    assert stopped[0] == 0, stopped
    assert vmm.inspect("d")["State"]["ExitCode"] == 137
    assert time.monotonic() - begun < 12
    (begun_again,) = batch(vmm, ["system", "libvirt", "start"])
    assert begun_again[0] == 0, begun_again
    check, repair, clean = batch(
        vmm, ["system", "check"], ["system", "check", "--repair"], ["system", "check"]
    )
    assert check[0] == 1 and "an older copy" in check[1]
    assert repair[0] == 0 and clean == (0, "", "")
    lost_documents(vmm, workload)
    vmm.run("system", "libvirt", "stop")
    (removed,) = batch(vmm, ["rm", "-v", "d"])
    assert removed[0] == 0 and "system check --repair" in removed[2]
    vmm.run("system", "libvirt", "start")
    assert workload[:12] in domains(vmm)
    check, repair = batch(vmm, ["system", "check"], ["system", "check", "--repair"])
    assert check[0] == 1 and "the workload is gone" in check[1]
    assert repair[0] == 0 and workload[:12] not in domains(vmm)


def lost_documents(vmm: Instance, workload: str) -> None:
    """What is not libvirt's to show comes from a copy; without that, from the image."""
    document = vmm.root / "workloads" / workload / "workload.json"
    copy = vmm.root / "guest/specs" / f"{workload}.json"
    spec = json.loads(document.read_text())
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert SECRET in copy.read_text()
    document.unlink()
    batch(vmm, ["system", "rebuild"])
    assert json.loads(document.read_text()) == spec
    document.unlink()
    copy.unlink()
    check, repair, clean = batch(
        vmm, ["system", "check"], ["system", "check", "--repair"], ["system", "check"]
    )
    assert check[0] == 1 and "its workload.json is lost" in check[1]
    assert repair[0] == 0 and "are the image's now" in repair[2]
    assert clean == (0, "", "")
    again = json.loads(document.read_text())
    assert again["metadata"] == spec["metadata"] == {"k": "v"}
    assert again["mounts"] == spec["mounts"] and again["network"] == spec["network"]
    assert again["process"]["cmd"] == ["sh"] and SECRET not in str(again)


def test_what_others_damaged_is_mended(vmm: Instance) -> None:
    """One boot, of a guest whose domain was renamed, and whose shared files were cut short."""
    create = ["create", "--backend", "qemu", "--network", "none", "--name", "c", "busybox"]
    (made,) = batch(vmm, [*create, "echo", "mended"])
    assert made[0] == 0, made
    name = f"{vmm.mark}-{made[1][:12]}"
    vmm.inside("virsh", "-c", URI, "start", name)
    check, repair, clean = batch(
        vmm, ["system", "check"], ["system", "check", "--repair"], ["system", "check"]
    )
    assert check[0] == 1 and "its guest runs, but nobody keeps it" in check[1], check
    assert repair[0] == 0 and clean == (0, "", ""), (repair, clean)
    assert "shut off" in vmm.inside("virsh", "-c", URI, "domstate", name).stdout
    vmm.inside("virsh", "-c", URI, "undefine", name)
    check, repair = batch(vmm, ["system", "check"], ["system", "check", "--repair"])
    assert check[0] == 1 and "lost behind vmm's back" in check[1]
    assert repair[0] == 0 and name in domains(vmm)
    vmm.inside("virsh", "-c", URI, "domrename", name, f"{vmm.mark}-other")
    for image in (vmm.root / "guest").glob("*.erofs"):
        os.truncate(image, 8192)
    for initrd in (vmm.root / "guest/boot").glob("*/initrd"):
        os.truncate(initrd, 100)
    check, started, waited, repair, clean = batch(
        vmm, ["system", "check"], ["start", "c"], ["wait", "c"],
        ["system", "check", "--repair"], ["system", "check"],
    )  # fmt: skip
    assert "a damaged root image" in check[1] and "damaged boot files" in check[1]
    assert started[0] == 0, started
    assert (waited[1], vmm.out("logs", "c")) == ("0\n", "mended")
    assert repair[0] == 0, repair
    assert clean == (0, "", "")
    assert f"{vmm.mark}-other" not in domains(vmm)
    assert_lost_disk_is_missed(vmm, vmm.root / "workloads" / made[1].strip() / "disk.raw")


def assert_lost_disk_is_missed(vmm: Instance, disk: Path) -> None:
    """What a guest wrote is not replaced by an empty disk; put back, all is well."""
    aside = disk.rename(disk.with_name("aside"))
    start, check, renamed = batch(vmm, ["start", "c"], ["system", "check"], ["rename", "c", "d"])
    assert start[0] == 1 and "disk is gone" in start[2] and "put it back" in start[2]
    assert check[0] == 1 and "disk is gone" in check[1]
    assert renamed[0] == 0 and not disk.exists()
    disk.touch()
    os.truncate(disk, 1 << 20)
    (start,) = batch(vmm, ["start", "d"])
    assert start[0] == 1 and "overwritten" in start[2]
    aside.rename(disk)
    repair, clean = batch(vmm, ["system", "check", "--repair"], ["system", "check"])
    assert repair[0] == 0 and clean == (0, "", "")
