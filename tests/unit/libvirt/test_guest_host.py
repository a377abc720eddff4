"""What a guest's start makes on the host: the shared directory, QEMU's way to its files, limits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Timer

import msgspec
import pytest

from tests.unit.libvirt.machines import (
    HOST,
    HYPERVISOR,
    PATHS,
    SESSION,
    UUID,
    RecordedLibvirt,
    compile_input,
    spec,
)
from vmm.backends.libvirt import (
    QemuBackend,
    access,
    control,
    facts,
    logs,
    metadata,
    port,
    shares,
)
from vmm.backends.libvirt.port import HostLibvirt
from vmm.model.backend import BackendOptions, CompileInput, ResolvedMount, RootLayout
from vmm.model.errors import HostError, Unsupported
from vmm.model.spec import Resources
from vmm.ports import kernel


def mounted(below: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(below))]


def binds(run: Path, *found: ResolvedMount) -> CompileInput:
    paths = msgspec.structs.replace(PATHS, run=str(run))
    return compile_input(spec(), paths=paths, mounts=found)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run"
    path.mkdir()
    yield path
    shares.cleanup(str(path))
    assert mounted(path) == []


def bind(source: Path, **values: object) -> ResolvedMount:
    return msgspec.convert(
        {"kind": "bind", "target": "/x", "source": str(source), **values}, ResolvedMount
    )


def test_the_shared_directory(run: Path, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "file"
    data.mkdir()
    file.write_text("f")
    tmpfs = ResolvedMount(kind="tmpfs", target="/t")
    given = binds(run, bind(data), tmpfs, bind(data, read_only=True), bind(file, directory=False))
    for _ in range(2):  # a start that was killed is simply done again
        shares.prepare(given)
    share = run / "share"
    (share / "0" / "new").write_text("x")
    assert (data / "new").exists() and (share / "2" / "file").read_text() == "f"
    for denied in (share / "1" / "no", share / "no", share / "2" / "no"):
        with pytest.raises(OSError, match="Read-only"):
            denied.write_text("x")
    assert len(mounted(run)) == 4
    shares.cleanup(str(run))
    shares.cleanup(str(run))
    assert not share.exists() and (data / "new").exists()


def test_what_is_mounted_for_a_guest_stays_in_its_share(run: Path, tmp_path: Path) -> None:
    """Below a mount that is shared, as systemd makes `/`, it would appear in every namespace."""
    kernel.mount("tmpfs", str(run), 0, "")
    try:
        kernel.mount("", str(run), 1 << 20)  # MS_SHARED
        (tmp_path / "data").mkdir()
        shares.prepare(binds(run, bind(tmp_path / "data")))
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        found = [line for line in lines if line.split()[4].startswith(f"{run}/share/")]
        assert len(found) == 1 and "shared:" not in found[0], found
    finally:
        shares.cleanup(str(run))
        kernel.unmount(str(run))


def test_a_mount_below_a_read_only_bind_is_read_only_too(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "t", str(data / "below")], check=True)
    try:
        shares.prepare(binds(run, bind(data, read_only=True)))
        with pytest.raises(OSError, match="Read-only"):
            (run / "share" / "0" / "below" / "x").write_text("x")
    finally:
        subprocess.run(["umount", str(data / "below")], check=True)


def test_a_socket_is_refused(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Unsupported, match="shares files and directories"):
        shares.prepare(binds(run, bind(tmp_path / "fifo", directory=False)))
    with pytest.raises(HostError, match="No such file"):
        shares.prepare(binds(run, bind(tmp_path / "gone")))
    assert mounted(run) == []


@pytest.fixture
def guest() -> Iterator[CompileInput]:
    """A guest's files, where another user can get to them."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        top = Path(name)
        top.chmod(0o711)
        (top / "instance/run").mkdir(0o700, parents=True)
        for file in ("root", "disk", "kernel", "initrd"):
            (top / file).touch(0o640)
            os.chown(top / file, HYPERVISOR.uid if file == "disk" else 0, HYPERVISOR.gid)
        root = RootLayout(
            driver="disk",
            path=f"{top}/root",
            disk=f"{top}/disk",
            kernel=f"{top}/kernel",
            initrd=f"{top}/initrd",
        )
        paths = msgspec.structs.replace(PATHS, run=f"{top}/instance/run")
        yield compile_input(spec(), paths=paths, root=root)


def test_qemu_reaches_what_it_opens(guest: CompileInput) -> None:
    access.prepare(guest)
    for directory in (guest.paths.run, os.path.dirname(guest.paths.run)):
        run = os.stat(directory)
        assert (run.st_mode & 0o7777, run.st_uid, run.st_gid) == (0o710, 0, HYPERVISOR.gid)


@pytest.mark.parametrize(
    ("name", "mode", "verb"),
    [("", 0o700, "search"), ("kernel", 0o600, "read"), ("disk", 0o400, "write")],
)
def test_what_keeps_qemu_out_is_named(guest: CompileInput, name: str, mode: int, verb: str) -> None:
    place = os.path.join(os.path.dirname(guest.root.disk), name).rstrip("/")
    os.chmod(place, mode)
    with pytest.raises(HostError, match=f"may not {verb} it") as caught:
        access.prepare(guest)
    assert caught.value.message.startswith(f"{place}: ") and place in caught.value.hint


def updated(libvirt: RecordedLibvirt, limits: Resources) -> bytes:
    workload = spec(resources=limits)
    return QemuBackend(libvirt=libvirt).update(compile_input(workload, HOST), True)


def running() -> RecordedLibvirt:
    """A guest of 512 MiB and two CPUs, as libvirt would tell."""
    libvirt = RecordedLibvirt()
    libvirt.sizes, libvirt.cpus = (512 << 10, 512 << 10), 2
    element = metadata.of(spec(resources=Resources(pids_limit=10)), "vmm").children[0]
    libvirt.documents = [element.render()]
    return libvirt


def test_limits_of_a_running_guest() -> None:
    libvirt = running()
    limits = Resources(memory=256 << 20, nano_cpus=10**9, cpuset_cpus="1", pids_limit=10)
    assert updated(libvirt, limits) == b""
    assert libvirt.calls == [
        ("set_memory", UUID, 256 << 10),
        ("tune", UUID, {"vcpu_period": 100_000, "vcpu_quota": 50_000}),
        ("pin", UUID, (False, True, False, False)),
    ]


@pytest.mark.parametrize(
    "limits", [{"memory": 1 << 30}, {"nano_cpus": 3 * 10**9}, {"pids_limit": 11}]
)
def test_what_waits_for_the_next_start_changes_nothing(limits: dict[str, int]) -> None:
    libvirt = running()
    with pytest.raises(Unsupported, match="vmm stop web"):
        updated(libvirt, msgspec.convert({"pids_limit": 10, **limits}, Resources))
    assert libvirt.calls == []


def test_parts_of_a_cpu_of_a_running_guest_need_control_groups() -> None:
    """It has two CPUs; one would be half of each."""
    libvirt = running()
    limits = Resources(memory=256 << 20, nano_cpus=10**9, pids_limit=10)
    given = compile_input(spec(resources=limits), SESSION)
    with pytest.raises(Unsupported, match="vmm stop web"):
        QemuBackend(libvirt=libvirt).update(given, True)
    assert libvirt.calls == []


def test_a_guest_that_is_off_is_left_alone() -> None:
    libvirt = RecordedLibvirt()
    given = compile_input(spec(resources=Resources(memory=1 << 40)))
    assert QemuBackend(libvirt=libvirt).update(given, False) == b"" and libvirt.calls == []


def run_control(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The control program as the shim runs it, over libvirt's own test driver."""
    argv = [sys.executable, "-I", control.__file__, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)


#: The one domain that test:///default has; it runs.
TEST = "6695eb01-f6a4-8304-79aa-97f2502e193f"


def test_the_control_program() -> None:
    started = run_control("test:///default", TEST, "start")
    assert (started.returncode, started.stdout) == (0, "pid 0\nneeds 0\n"), started.stderr
    for action in ("destroy", "suspend"):
        done = run_control("test:///default", TEST, action)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "runs" in run_control("test:///default", TEST, "reason").stdout
    gone = run_control("test:///default", UUID, "reason")
    assert gone.returncode == 0 and "gone from libvirt" in gone.stdout
    failed = run_control("test:///default", UUID, "start")
    assert failed.returncode == 1 and failed.stderr.startswith("libvirt: ")
    assert len(failed.stderr.splitlines()) == 1
    assert run_control("test:///default", TEST, "explode").returncode == 2
    down = run_control("qemu+unix:///system?socket=/nonexistent", TEST, "start")
    assert down.returncode == 1 and "/nonexistent" in down.stderr


@pytest.mark.parametrize("action", ["destroy", "reason", "start"])
def test_a_libvirtd_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "CONNECTS", {"destroy": 0.3, "reason": 0.3, "start": 0.3})
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        code = control.act_within(f"qemu+unix:///system?socket={path}", UUID, action)
        said = capsys.readouterr()
    if action == "reason":
        assert code == 0 and "the emulator" in said.out
    else:  # it may be at starting an emulator, of which nobody knows the pid yet
        assert code == 1 and "does not answer" in said.err


def test_an_emulator_that_a_hanging_libvirtd_starts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirtd is in the middle of a start, lets in whoever ends it, and answers no more."""

    def hangs(_uri: str, _uuid: str, _action: str, opened: Callable[[], None]) -> int:
        opened()
        time.sleep(60)
        return 1

    monkeypatch.setattr(control, "act", hangs)
    monkeypatch.setattr(control, "HANGS", {"destroy": 0.2})
    monkeypatch.setattr(control, "PID_DIRECTORIES", (str(tmp_path),))
    words = [sys.executable, "-c", "import time; time.sleep(60)", "-uuid", UUID]
    with subprocess.Popen(words) as process:
        appears = Timer(0.5, lambda: (tmp_path / "vmm-x.pid").write_text(str(process.pid)))
        appears.start()
        assert control.act_within("qemu:///system", UUID, "destroy") == 0
        assert process.wait(1) == -signal.SIGTERM


def test_an_emulator_that_does_not_end_in_order_is_killed() -> None:
    program = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", program, "-uuid", UUID]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        assert control.end_alone(process.pid, UUID)
        assert process.wait(1) == -signal.SIGKILL


def test_pid_files_of_a_session_are_beside_its_socket(tmp_path: Path) -> None:
    uri = f"qemu:///session?socket={tmp_path}/libvirt-sock"
    assert f"{tmp_path}/qemu/run" in control.state_directories(uri)
    assert control.state_directories("qemu:///system") == ["/run/libvirt/qemu"]


def test_a_pid_file_of_another_process_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmm-x.pid").write_text(str(os.getpid()))
    monkeypatch.setattr(control, "PID_DIRECTORIES", (str(tmp_path),))
    assert control.pid_of("qemu:///system", "vmm-x", UUID) == 0
    waits = [sys.executable, "-c", "import time; print(flush=True); time.sleep(20)"]
    for words, pid in (([UUID, "destroy"], False), (["-uuid", UUID], True)):
        with subprocess.Popen([*waits, *words], stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            (tmp_path / "vmm-x.pid").write_text(str(process.pid))
            found = control.pid_of("qemu:///system", "vmm-x", UUID)
            assert found == (process.pid if pid else 0)
            if os.geteuid() == 0:  # what a user wrote, of a process that is not the user's
                os.chown(tmp_path / "vmm-x.pid", 12345, 12345)
                assert control.pid_of("qemu:///system", "vmm-x", UUID) == 0
                os.chown(tmp_path / "vmm-x.pid", 0, 0)
            process.kill()
    assert control.pid_of("qemu:///system", "vmm-x", UUID) == 0


class virDomain:
    """One whose daemon stopped answering."""

    def __init__(self, release: Event) -> None:
        self.destroy = release.wait


class virConnect:
    def __init__(self, release: Event) -> None:
        self.release = release

    def lookupByUUIDString(self, _uuid: str) -> virDomain:
        return virDomain(self.release)

    def listAllDomains(self, _flags: int) -> list[virDomain]:
        self.release.wait()
        return []


def test_a_libvirtd_that_stops_answering_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was connected to already, and a workload's lock may be held."""
    release = Event()
    monkeypatch.setattr(port, "ANSWERS", 0.2)
    host = HostLibvirt("test:///default")
    for ask in (lambda: host.destroy(UUID), host.metadata):
        host.__dict__["_connection"] = port._patient(virConnect(release))
        with pytest.raises(HostError, match=r"does not answer within 0 s"):
            ask()
        assert host.version() > 0  # it connects again
    release.set()


def test_logs_go_with_their_domain(tmp_path: Path) -> None:
    ours = ["vmm-0123.log", "vmm-0123.log.0", "vmm-0123-fs0-virtiofsd.log"]
    for name in (*ours, "vmm-01234.log", "other.log"):
        (tmp_path / name).touch()
    logs.remove("vmm-0123", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.log", "vmm-01234.log"]
    logs.remove("vmm-0123", str(tmp_path / "missing"))


def test_what_is_installed_later_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virtiofsd, for one, and another user for QEMU."""
    helpers, answers = tmp_path / "vhost-user", iter(range(1, 9))
    monkeypatch.setattr(facts, "_SOURCES", (str(helpers), str(tmp_path / "qemu.conf")))
    options = BackendOptions(cache=str(tmp_path / "cache"))

    def ask() -> int:
        found = facts.cached(
            options,
            QemuBackend.variant,
            lambda: msgspec.structs.replace(HYPERVISOR, uid=next(answers)),
        )
        return found.uid

    assert (ask(), ask()) == (1, 1)
    helpers.mkdir()
    assert (ask(), ask()) == (2, 2)
    (helpers / "50-virtiofsd.json").touch()
    assert ask() == 3
    (tmp_path / "qemu.conf").write_text("user = 'root'")
    assert (ask(), ask()) == (4, 4)
