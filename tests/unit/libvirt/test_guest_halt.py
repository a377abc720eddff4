"""A guest that QEMU stopped is told by the state that libvirtd keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.backends.libvirt.halt import reason

#: As libvirt 9.0 writes it.
STATE = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  virsh edit vmm-4925daba-95445ff027d2
or other application using the libvirt API.
-->

<domstatus state='{state}' reason='{reason}' pid='30995'>
  <monitor path='/var/lib/libvirt/qemu/domain-1-vmm/monitor.sock' type='unix'/>
"""


@pytest.mark.parametrize(
    ("state", "why", "halted"),
    [
        ("running", "booted", False),
        ("paused", "user", True),
        ("paused", "starting up", False),
        ("paused", "ioerror", True),
        ("running", "unpaused", False),
    ],
)
def test_what_stands_still_without_vmm_is_told(
    tmp_path: Path, state: str, why: str, halted: bool
) -> None:
    (tmp_path / "qemu" / "run").mkdir(parents=True)
    file = tmp_path / "qemu" / "run" / "vmm-95445ff027d2.xml"
    file.write_text(STATE.format(state=state, reason=why))
    said = reason(f"qemu:///session?socket={tmp_path}/libvirt-sock", "vmm-95445ff027d2")
    assert ("vmm unpause" in said) is halted
    file.unlink()
    assert reason(f"qemu:///session?socket={tmp_path}/libvirt-sock", "vmm-95445ff027d2") == ""
