"""What is found out about guests here, kept, and explained. ``RecordedLibvirt`` gives libvirt's
answers as one gave them (shortened)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.libvirt.machines import HYPERVISOR, RecordedLibvirt
from vmm.backends.libvirt import KvmBackend, QemuBackend, hypervisor, probe
from vmm.backends.libvirt.port import HostLibvirt, connection_error
from vmm.engine import backends
from vmm.model.backend import BackendOptions
from vmm.model.errors import HostError, Unsupported, UsageError

CAPABILITIES = """<capabilities><host>
<secmodel><model>none</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><doi>0</doi>
<baselabel type='kvm'>+64055:+64055</baselabel><baselabel type='qemu'>+64055:+64055</baselabel>
</secmodel></host></capabilities>"""
DOMAIN = """<domainCapabilities><path>/usr/bin/qemu-system-x86_64</path><domain>{0}</domain>
<machine>pc-q35-7.2</machine><devices><filesystem supported='yes'><enum name='driverType'>
<value>path</value><value>virtiofs</value></enum></filesystem></devices></domainCapabilities>"""
QEMU = {"qemu": DOMAIN.format("qemu")}


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMM_ACCEL", raising=False)


def test_facts_are_asked_for_once_a_boot(tmp_path: Path) -> None:
    libvirt = RecordedLibvirt(CAPABILITIES, QEMU)
    options = BackendOptions(cache=str(tmp_path / "cache"))
    facts = QemuBackend(options, libvirt).facts()
    found = facts.hypervisor
    assert found and (found.machine, found.uid, found.gid) == ("pc-q35-7.2", 64055, 64055)
    assert found.accelerator == "tcg" and not found.session and facts.memory > 1 << 20
    assert Path(found.control[-1]).name == "control.py" and os.path.exists(found.control[-1])
    asked = len(libvirt.calls)
    assert QemuBackend(options, libvirt).facts() == facts and len(libvirt.calls) == asked
    (kept,) = (tmp_path / "cache").iterdir()
    for spoilt in (kept.read_bytes().replace(b'"boot":"', b'"boot":"x'), b"{", b""):
        kept.write_bytes(spoilt)
        before = len(libvirt.calls)
        assert QemuBackend(options, libvirt).facts() == facts
        assert len(libvirt.calls) == before + asked


def test_a_session_is_of_whom_its_socket_is(tmp_path: Path) -> None:
    session = "<capabilities><host><secmodel><model>none</model></secmodel></host></capabilities>"
    socket = tmp_path / "libvirt-sock"
    socket.touch()
    os.chown(socket, 1234, 5678)
    libvirt = RecordedLibvirt(session, QEMU)
    libvirt.uri = f"qemu:///session?socket={socket}"
    facts = QemuBackend(libvirt=libvirt).facts()
    found = facts.hypervisor
    assert found and found.session and (found.uid, found.gid) == (1234, 5678)
    assert found.virtiofsd == "" and facts.cgroups == ()
    lines = {part.name: part.available for part in QemuBackend(libvirt=libvirt).probe()}
    assert lines["qemu"] and not lines["shared directories"] and not lines["parts of CPUs"]


def test_another_processor_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="x86_64 hosts, this one is riscv64"):
        hypervisor.ask(RecordedLibvirt(CAPABILITIES, QEMU), QemuBackend.variant, "riscv64")


@pytest.mark.parametrize(
    ("accelerator", "device", "module", "available", "reason"),
    [
        ("", False, False, False, "no "),
        ("", True, False, True, ""),
        ("", True, True, False, "kvm_pvm"),
        ("kvm", False, True, True, "VMM_ACCEL=kvm"),
        ("tcg", True, False, False, "VMM_ACCEL=tcg"),
    ],
)
def test_acceleration(
    tmp_path: Path, accelerator: str, device: bool, module: bool, available: bool, reason: str
) -> None:
    for name, there in (("kvm", device), ("pvm", module)):
        if there:
            (tmp_path / name).touch()
    found = probe.acceleration(accelerator, str(tmp_path / "kvm"), str(tmp_path / "pvm"))
    assert found.available is available and reason in found.reason


def test_a_wrong_override_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMM_ACCEL", "xen")
    with pytest.raises(UsageError, match="VMM_ACCEL='xen'"):
        KvmBackend(libvirt=RecordedLibvirt(CAPABILITIES, QEMU)).probe()


def test_probe_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    libvirt = RecordedLibvirt(CAPABILITIES, QEMU)
    itself, *parts = QemuBackend(libvirt=libvirt).probe()
    assert itself.available and "emulation" in itself.reason
    assert ["9.0.0" in part.reason for part in parts if part.name == "libvirt"] == [True]
    monkeypatch.setenv("VMM_ACCEL", "kvm")
    itself, *_ = KvmBackend(libvirt=libvirt).probe()
    assert not itself.available and "KVM is not supported" in itself.reason
    libvirt.down = connection_error("qemu:///system", "Failed to connect socket: No such file")
    itself, *_ = QemuBackend(libvirt=libvirt).probe()
    assert not itself.available and "vmm system libvirt start" in itself.reason


def test_a_device_that_qemu_may_not_open_is_told(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert probe.unreachable(HYPERVISOR, str(device)) == ""
    device.touch(0o600)
    assert "chgrp kvm" in probe.unreachable(HYPERVISOR, str(device))
    device.chmod(0o666)
    assert probe.unreachable(HYPERVISOR, str(device)) == ""


def test_errors_of_the_connection_say_what_to_do() -> None:
    with pytest.raises(HostError) as caught:
        HostLibvirt("qemu+unix:///system?socket=/nonexistent/sock").version()
    assert "no connection to libvirt" in caught.value.message
    assert "libvirt_uri" in caught.value.hint
    assert "vmm system libvirt start" in connection_error("qemu:///system", "refused").hint
    assert "group libvirt" in connection_error("u", "x: Permission denied").hint


@pytest.mark.parametrize("wanted", ["vm", "kvm", "qemu", "auto"])
def test_foreign_processors_are_refused_by_name(wanted: str) -> None:
    with pytest.raises(Unsupported, match="linux/s390x"):
        backends.choose(wanted, "linux", "s390x")


def test_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon of this host is asked: the choice is made over recorded answers."""
    libvirt = RecordedLibvirt(CAPABILITIES, {**QEMU, "kvm": DOMAIN.format("kvm")})
    made = {"kvm": KvmBackend, "qemu": QemuBackend}
    monkeypatch.setattr(backends, "load", lambda name, options: made[name](options, libvirt))
    machine = ("linux", "amd64")
    monkeypatch.setenv("VMM_ACCEL", "kvm")
    assert backends.choose("vm", *machine)[0] == "kvm"
    monkeypatch.setenv("VMM_ACCEL", "tcg")
    chosen, reason = backends.choose("vm", *machine)
    assert chosen == "qemu" and "no kvm: VMM_ACCEL=tcg" in reason
    with pytest.raises(Unsupported, match="kvm cannot run here") as caught:
        backends.choose("kvm", *machine)
    assert "--backend qemu" in caught.value.hint
    libvirt.domain_types = {}
    with pytest.raises(Unsupported, match="no virtual machine can run here"):
        backends.choose("vm", *machine)
