"""vmm: one spec and one image for containers, jails and virtual machines."""

__version__ = "0.1.0"
