"""The domain of a guest, as libvirt's XML (formatdomain.html). Pure."""

from __future__ import annotations

from vmm.backends.libvirt import devices, metadata, naming, sizing
from vmm.backends.libvirt.variant import Variant
from vmm.backends.libvirt.xml import Element, element
from vmm.backends.linux.cgroups import CPU_PERIOD
from vmm.model.backend import CompileInput, Hypervisor
from vmm.model.errors import HostError

#: Kernel parameters of every guest: messages on the serial console, errors only; a panic ends it.
PARAMETERS = "console=ttyS0 quiet panic=-1"
_ARCHITECTURES = {"amd64": "x86_64"}


def document(given: CompileInput, variant: Variant) -> str:
    """The whole domain."""
    spec, hypervisor = given.spec, hypervisor_of(given)
    memory = sizing.memory_kib(given)
    whole = element(
        "domain",
        {"type": variant.domain_type, "xmlns:qemu": _QEMU},
        element("name", text=naming.domain(given.cgroup_parent, spec.id)),
        element("uuid", text=naming.uuid(spec.id)),
        metadata.of(given.stored or spec, given.cgroup_parent),
        element("memory", {"unit": "KiB"}, text=memory),
        element("currentMemory", {"unit": "KiB"}, text=memory),
        _shared_memory(given),
        _processors(given),
        _tuning(given),
        _boot(given, hypervisor, variant),
        _features(hypervisor, variant),
        variant.cpu,
        variant.clock,
        *_endings(),
        _devices(given, hypervisor),
        _label(hypervisor),
        _emulator(hypervisor),
    )
    return whole.render()


def hypervisor_of(given: CompileInput) -> Hypervisor:
    """The host's hypervisor; HostError when the facts hold none."""
    if given.host.hypervisor is None:
        raise HostError(f"backend {given.spec.backend}: no hypervisor is known", "vmm backends")
    return given.host.hypervisor


#: Of elements that are QEMU's alone (drvqemu.html, "Pass-through of arbitrary qemu commands").
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
#: The QEMU that first had ``-action``.
_ACTION_SINCE = 6_000_000
#: The libvirt that first had ``<tcg>``.
_TRANSLATIONS_SINCE = 8_000_000


def _features(hypervisor: Hypervisor, variant: Variant) -> Element:
    """No VMware port, which programs would probe for; and an end to the memory that QEMU takes for
    translated code: without one it is 1 GiB, whatever the guest's size (qemu(1), ``tb-size``)."""
    found = [element("acpi"), element("apic"), element("vmport", {"state": "off"})]
    if variant.translations and hypervisor.version >= _TRANSLATIONS_SINCE:
        cache = element("tb-cache", {"unit": "MiB"}, text=variant.translations)
        found.append(element("tcg", {}, cache))
    return element("features", {}, *found)


def _shared_memory(given: CompileInput) -> Element | None:
    """virtiofsd maps the guest's memory (https://libvirt.org/kbase/virtiofs.html)."""
    if not shares(given):
        return None
    source, access = element("source", {"type": "memfd"}), element("access", {"mode": "shared"})
    return element("memoryBacking", {}, source, access)


def shares(given: CompileInput) -> bool:
    """Whether the guest sees anything of the host."""
    return any(mount.kind != "tmpfs" for mount in given.mounts)


def _processors(given: CompileInput) -> Element:
    pinned = given.spec.resources.cpuset_cpus
    attributes = {"placement": "static", **({"cpuset": pinned} if pinned else {})}
    return element("vcpu", attributes, text=sizing.processors(given.spec.resources))


def _tuning(given: CompileInput) -> Element | None:
    """Its part of the host's CPUs, by libvirt's control groups (formatdomain.html, "cputune")."""
    resources = given.spec.resources
    quota = sizing.quota(resources, sizing.processors(resources))
    found = []
    if resources.cpu_shares:
        shares = sizing.shares(resources.cpu_shares, given.host)
        found.append(element("shares", text=shares))
    if quota > 0:
        found += [element("period", text=CPU_PERIOD), element("quota", text=quota)]
    return element("cputune", {}, *found) if found else None


def _boot(given: CompileInput, hypervisor: Hypervisor, variant: Variant) -> Element:
    """Straight into the kernel: no boot loader, no boot order."""
    architecture = _ARCHITECTURES.get(given.host.architecture, given.host.architecture)
    return element(
        "os",
        {},
        element("type", {"arch": architecture, "machine": hypervisor.machine}, text="hvm"),
        element("kernel", text=given.root.kernel),
        element("initrd", text=given.root.initrd),
        element("cmdline", text=f"{PARAMETERS} {variant.parameters}".strip()),
    )


def _endings() -> list[Element]:
    """However it ends, it is off then: what happens next is the restart policy's."""
    events = ("on_poweroff", "on_reboot", "on_crash")
    return [element(event, text="destroy") for event in events]


def _devices(given: CompileInput, hypervisor: Hypervisor) -> Element:
    found = [
        element("emulator", text=hypervisor.emulator),
        devices.root(given),
        devices.disk(given),
        *devices.controllers(),
    ]
    if shares(given):
        found.append(devices.share(given))
    if given.endpoint:
        found.append(devices.network(given.endpoint, hypervisor.session))
    found += [*devices.console(), devices.channel(given), devices.balloon(), devices.entropy()]
    return element("devices", {}, *found)


def _label(hypervisor: Hypervisor) -> Element | None:
    """QEMU's user is fixed, and libvirt changes no owner of any file: disks, kernel and
    initramfs have the right ones already and keep them. A session has neither."""
    if hypervisor.session:
        return None
    label = element("label", text=f"+{hypervisor.uid}:+{hypervisor.gid}")
    return element("seclabel", {"type": "static", "model": "dac", "relabel": "no"}, label)


def _emulator(hypervisor: Hypervisor) -> Element | None:
    """A guest that powers off is off. libvirt has QEMU wait instead until libvirtd takes note of it
    (``-no-shutdown``), which it cannot while it is down (qemu(1), ``-action``)."""
    if hypervisor.emulator_version < _ACTION_SINCE:
        return None
    words = ("-action", "shutdown=poweroff")
    return element("qemu:commandline", {}, *(element("qemu:arg", {"value": w}) for w in words))
