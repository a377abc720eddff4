"""The port to libvirt: the few calls that vmm makes, and the real one over libvirt-python."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

from vmm.backends.libvirt.metadata import NAMESPACE
from vmm.model.errors import HostError, Unsupported, UsageError


class Libvirt(Protocol):
    """One connection. Domains are named by UUID; errors are HostError or Unsupported."""

    uri: str

    def version(self) -> int:
        """libvirt's own, as 9_000_000."""
        ...

    def emulator_version(self) -> int:
        """The hypervisor's own (virConnectGetVersion), 0 where libvirt cannot tell."""
        ...

    def capabilities(self) -> str: ...

    def domain_capabilities(self, architecture: str, machine: str, kind: str) -> str:
        """What domains of type ``kind`` may have (virConnectGetDomainCapabilities);
        Unsupported when there can be none."""
        ...

    def define(self, document: str) -> None:
        """Make the persistent domain, or change it (virDomainDefineXML)."""
        ...

    def undefine(self, uuid: str) -> None:
        """Forget a domain; nothing if there is none."""
        ...

    def destroy(self, uuid: str) -> None:
        """End a domain at once; nothing if it is off."""
        ...

    def active(self, uuid: str) -> bool: ...

    def metadata(self) -> list[str]:
        """The element of ours of every domain that has one."""
        ...

    def memory(self, uuid: str) -> tuple[int, int]:
        """Largest and present size of a running guest, KiB; zeros when it is off."""
        ...

    def set_memory(self, uuid: str, kib: int) -> None:
        """Resize a running guest within its largest size (virDomainSetMemoryFlags)."""
        ...

    def processors(self, uuid: str) -> int:
        """Virtual CPUs of a domain, 0 for none."""
        ...

    def recorded(self, uuid: str) -> str:
        """The element of ours of a persistent domain, "" for none."""
        ...

    def console(self, uuid: str) -> str:
        """The terminal device of a running guest's serial line, "" for none."""
        ...

    def tune(self, uuid: str, parameters: dict[str, int]) -> None:
        """Change a running guest's part of the CPUs (virDomainSetSchedulerParametersFlags)."""
        ...

    def pin(self, uuid: str, cpus: tuple[bool, ...]) -> None:
        """Let a running guest's threads run on these CPUs of the host alone."""
        ...


#: Disks, sockets and links are paths and names of this host (``test``: libvirt's own stand-in).
_HERE = re.compile(r"qemu(\+unix)?:///(system|session)(\?|\Z)|test:///")
_UUID = re.compile("<uuid>([0-9a-f-]{36})</uuid>")
#: For a connection (seconds): a daemon that has just been started looks at every emulator first;
#: but what ends or forgets a guest need not wait for it.
PATIENCE, HASTE = 20.0, 5.0
#: And for an answer afterwards: what a domain may have is asked of every emulator, and a stubborn
#: emulator is waited for 15 s and more (virDomainDestroy).
ANSWERS = 90.0


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call of libvirt, which itself knows no deadline; TimeoutError.

    The thread of a call that never returns is left behind; it does not keep the process.
    """
    from threading import Thread

    results: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # handed on
            errors.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


class _Patient:
    """An object of libvirt's whose calls have a deadline (TimeoutError), and so have those of the
    domains that they give."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        def call(*arguments: Any) -> Any:
            found = _within(ANSWERS, lambda: method(*arguments))
            if isinstance(found, list):
                return [_patient(item) for item in found]
            return _patient(found)

        return call


def _patient(found: Any) -> Any:
    return _Patient(found) if type(found).__name__ in ("virConnect", "virDomain") else found


class HostLibvirt:
    """The Libvirt of this host; connects when it is first used."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def _module(self) -> Any:
        try:
            import libvirt
        except ImportError as error:
            raise HostError(
                f"libvirt's Python module cannot be loaded: {error}",
                "apt install python3-libvirt, or pip install 'vmm[libvirt]'",
            ) from None
        # Without one, libvirt prints every error itself.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        return libvirt

    @cached_property
    def _connection(self) -> Any:
        return self._connected(PATIENCE)

    def _connected(self, patience: float) -> Any:
        module = self._module
        if not _HERE.match(self.uri):
            raise UsageError(
                f"libvirt_uri {self.uri!r:.80}: guests run on this host, by QEMU",
                "write qemu:///system, or qemu:///session?socket=PATH for another user's libvirt",
            )
        try:
            return _patient(_within(patience, lambda: module.open(self.uri)))
        except module.libvirtError as error:
            raise connection_error(self.uri, error.get_error_message() or str(error)) from None
        except TimeoutError:
            raise _silent(self.uri, patience) from None

    def _hasten(self) -> None:
        """Connect, if that is still to be done, without patience."""
        if "_connection" not in self.__dict__:
            self.__dict__["_connection"] = self._connected(HASTE)

    def answers(self) -> bool:
        """Whether a connection succeeds; HostError without libvirt's Python module."""
        module = self._module
        try:
            return bool(self._connection.isAlive())
        except (HostError, module.libvirtError):
            return False

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        connection, module = self._connection, self._module
        try:
            yield
        except module.libvirtError as error:
            message = " ".join(str(error).split())
            if not connection.isAlive():
                del self._connection
                raise connection_error(self.uri, message) from None
            raise HostError(f"libvirt ({self.uri}) cannot {what}: {message}") from None
        except TimeoutError:
            del self._connection  # its thread waits in it
            raise _silent(self.uri, ANSWERS) from None

    def version(self) -> int:
        with self._translated("tell its version"):
            return int(self._connection.getLibVersion())

    def emulator_version(self) -> int:
        with self._translated("tell the emulator's version"):
            return int(self._connection.getVersion())

    def capabilities(self) -> str:
        with self._translated("tell its capabilities"):
            return str(self._connection.getCapabilities())

    def domain_capabilities(self, architecture: str, machine: str, kind: str) -> str:
        with self._translated("tell what domains may have"):
            try:
                found = self._connection.getDomainCapabilities(None, architecture, machine, kind)
            except self._module.libvirtError as error:
                message = " ".join(str(error).split())
                raise Unsupported(f"libvirt has no {kind} guests here: {message}") from None
        return str(found)

    def define(self, document: str) -> None:
        module = self._module
        with self._translated("define the domain"):
            try:
                self._connection.defineXMLFlags(document, 0)
            except module.libvirtError as error:
                if error.get_error_code() != module.VIR_ERR_OPERATION_FAILED:
                    raise
                self._forget_other_name(document)
                self._connection.defineXMLFlags(document, 0)

    def _forget_other_name(self, document: str) -> None:
        """A domain that somebody renamed stands in the way of its own definition."""
        if found := _UUID.search(document):
            self.undefine(found[1])

    def undefine(self, uuid: str) -> None:
        self._hasten()
        with self._translated(f"forget domain {uuid}"), self._missing():
            flags = self._module.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            flags |= self._module.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            self._domain(uuid).undefineFlags(flags)

    def destroy(self, uuid: str) -> None:
        self._hasten()
        with self._translated(f"end domain {uuid}"), self._missing():
            self._domain(uuid).destroy()

    def active(self, uuid: str) -> bool:
        with self._translated(f"find domain {uuid}"), self._missing():
            return bool(self._domain(uuid).isActive())
        return False

    def metadata(self) -> list[str]:
        found = []
        kind = self._module.VIR_DOMAIN_METADATA_ELEMENT
        persistent = self._module.VIR_DOMAIN_AFFECT_CONFIG
        with self._translated("list its domains"):
            for domain in self._connection.listAllDomains(0):
                with contextlib.suppress(self._module.libvirtError):
                    found.append(str(domain.metadata(kind, NAMESPACE, persistent)))
        return found

    def memory(self, uuid: str) -> tuple[int, int]:
        with self._translated(f"look at domain {uuid}"), self._missing():
            domain = self._domain(uuid)
            if domain.isActive():
                _, largest, present, _, _ = domain.info()
                return int(largest), int(present)
        return 0, 0

    def set_memory(self, uuid: str, kib: int) -> None:
        with self._translated(f"resize the memory of domain {uuid}"):
            self._domain(uuid).setMemoryFlags(kib, self._module.VIR_DOMAIN_AFFECT_LIVE)

    def processors(self, uuid: str) -> int:
        with self._translated(f"look at domain {uuid}"), self._missing():
            return int(self._domain(uuid).info()[3])
        return 0

    def recorded(self, uuid: str) -> str:
        kind = self._module.VIR_DOMAIN_METADATA_ELEMENT
        persistent = self._module.VIR_DOMAIN_AFFECT_CONFIG
        codes = (self._module.VIR_ERR_NO_DOMAIN, self._module.VIR_ERR_NO_DOMAIN_METADATA)
        with self._translated(f"look at domain {uuid}"), self._missing(*codes):
            return str(self._domain(uuid).metadata(kind, NAMESPACE, persistent))
        return ""

    def console(self, uuid: str) -> str:
        from xml.etree import ElementTree

        with self._translated(f"look at domain {uuid}"), self._missing():
            document = ElementTree.fromstring(self._domain(uuid).XMLDesc(0))
            found = document.find("devices/console")
            return "" if found is None else found.get("tty", "")
        return ""

    def tune(self, uuid: str, parameters: dict[str, int]) -> None:
        live = self._module.VIR_DOMAIN_AFFECT_LIVE
        with self._translated(f"change the CPU time of domain {uuid}"):
            self._domain(uuid).setSchedulerParametersFlags(parameters, live)

    def pin(self, uuid: str, cpus: tuple[bool, ...]) -> None:
        live = self._module.VIR_DOMAIN_AFFECT_LIVE
        with self._translated(f"bind domain {uuid} to CPUs"):
            domain = self._domain(uuid)
            for number in range(domain.info()[3]):
                domain.pinVcpuFlags(number, cpus, live)
            domain.pinEmulator(cpus, live)

    def _domain(self, uuid: str) -> Any:
        return self._connection.lookupByUUIDString(uuid)

    @contextlib.contextmanager
    def _missing(self, *codes: int) -> Iterator[None]:
        """A domain that is gone, or off already, is no error; or these errors are none."""
        module = self._module
        expected = codes or (module.VIR_ERR_NO_DOMAIN, module.VIR_ERR_OPERATION_INVALID)
        try:
            yield
        except module.libvirtError as error:
            if error.get_error_code() not in expected:
                raise


def _silent(uri: str, seconds: float) -> HostError:
    return HostError(
        f"libvirt ({uri}) does not answer within {seconds:.0f} s",
        "see whether libvirtd hangs: its log is below /var/log/libvirt; then restart it",
    )


def connection_error(uri: str, message: str) -> HostError:
    """Why there is no connection, and what to do about it."""
    import shutil

    from vmm.backends.libvirt.control import socket_of

    said = " ".join(message.split())
    if "ermission denied" in said or "uthentication" in said:
        hint = "be root, or a member of the group libvirt: usermod -aG libvirt USER"
    elif socket_of(uri):
        hint = (
            f"see libvirt_uri: the user whose socket that is starts it: virsh -c {_plain(uri)} uri"
        )
    elif not shutil.which("libvirtd", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin"):
        hint = "install it: apt install libvirt-daemon-system qemu-system-x86"
    else:
        hint = "start it: vmm system libvirt start"
    return HostError(f"no connection to libvirt ({uri}): {said}", hint)


def _plain(uri: str) -> str:
    """The same for those whose own libvirt it is."""
    return uri.partition("?")[0].replace("+unix", "")
