"""Linux containers: processes kept apart by namespaces, cgroups and a seccomp filter."""

from vmm.backends.container.backend import ContainerBackend

__all__ = ["ContainerBackend"]
