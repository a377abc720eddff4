"""The public part of a spec in a domain's metadata comes back as it was, through libvirt itself."""

from __future__ import annotations

from xml.etree import ElementTree

import libvirt
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st

from tests.unit.libvirt.machines import UUID, compile_input, spec
from vmm.backends.libvirt import QemuBackend, metadata, naming
from vmm.backends.libvirt.port import HostLibvirt
from vmm.backends.libvirt.xml import element, escape
from vmm.model.backend import BackendOptions
from vmm.model.errors import HostError
from vmm.model.spec import Health, Process, WorkloadSpec, public

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HOSTILE = spec(
    labels={"<&>\"'": "]]>\0\x01\x1b\x7f\x85\ufffe\U0001f600\r\n\t"},
    metadata={"</vmm:workload>": "\\u0041", "&amp;": ""},
)
SECRET = "topsecret\u00fc-3141"


def domain(workload: WorkloadSpec) -> str:
    """A domain of libvirt's test driver with our metadata."""
    return element(
        "domain",
        {"type": "test"},
        element("name", text=naming.domain("vmm", workload.id)),
        element("uuid", text=naming.uuid(workload.id)),
        metadata.of(workload, "vmm"),
        element("memory", text=8192),
        element("os", {}, element("type", text="hvm")),
    ).render()


@examples(TEXT, TEXT)
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(key: str, value: str) -> None:
    workload = spec(labels={key: value}, metadata={value: key}, process=Process(cwd=value))
    text = metadata.of(workload, "vmm").render()
    assert text.isascii() and metadata.encode(workload).isprintable()
    inner = ElementTree.fromstring(text)[0]
    assert metadata.decode(ElementTree.tostring(inner, "unicode"), "vmm") == public(workload)


def test_what_may_be_secret_stays_out() -> None:
    """Any local user may read what libvirt's read-only socket tells."""
    process = Process(entrypoint=(SECRET,), cmd=("x", SECRET), env=(f"A={SECRET}",), cwd="/srv")
    health = Health(test=("CMD", SECRET), interval=5)
    whole = spec(process=process, health=health, labels={"k": "v"})
    text = metadata.of(whole, "vmm").render()
    assert "3141" not in text and "topsecret" not in text
    kept = metadata.decode(ElementTree.tostring(ElementTree.fromstring(text)[0], "unicode"), "vmm")
    assert kept == public(whole)
    assert kept.process.cwd == "/srv" and kept.labels == {"k": "v"}
    assert kept.health == Health(interval=5)


def test_through_libvirt() -> None:
    """test:///default is libvirt's own driver without a hypervisor."""
    port = HostLibvirt("test:///default")
    backend = QemuBackend(BackendOptions(mark="vmm"), port)
    port.define(domain(HOSTILE))
    port.define(domain(HOSTILE))
    assert backend.known() == [public(HOSTILE)]
    assert metadata.decode(port.recorded(UUID), "vmm") == public(HOSTILE)
    assert QemuBackend(BackendOptions(mark="vmm-other"), port).known() == []
    assert not port.active(UUID) and port.memory(UUID) == (0, 0)
    port.destroy(UUID)
    snapshot = "<domainsnapshot><name>s</name></domainsnapshot>"  # as virsh snapshot-create makes
    libvirt.open("test:///default").lookupByUUIDString(UUID).snapshotCreateXML(snapshot, 0)
    backend.forget(compile_input(HOSTILE))
    backend.forget(compile_input(HOSTILE))
    assert backend.known() == [] and port.recorded(UUID) == ""


def test_libvirt_finds_the_faults_of_a_domain() -> None:
    with pytest.raises(HostError, match="cannot define the domain"):
        HostLibvirt("test:///default").define("<domain type='test'><name>x</name></domain>")


@pytest.mark.parametrize(
    "text", ["", "<x", "<a instance='vmm'>{</a>", "<a instance='vmm'>{\"id\":1}</a>", "<a/>"]
)
def test_what_others_wrote_is_passed_over(text: str) -> None:
    assert metadata.decode(text, "vmm") is None


def test_a_newer_spec_is_passed_over() -> None:
    newer = metadata.of(spec(schema=99), "vmm").render()
    inner = ElementTree.tostring(ElementTree.fromstring(newer)[0], "unicode")
    assert metadata.decode(inner, "vmm") is None


@pytest.mark.parametrize("path", ["/a\x01b", "/a\udcff", "/\ufffe"])
def test_a_path_that_xml_cannot_carry_is_an_error(path: str) -> None:
    with pytest.raises(HostError, match="cannot carry"):
        escape(path)
