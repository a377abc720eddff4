"""What libvirt writes of a guest's emulator and its helpers, which it never removes itself."""

from __future__ import annotations

import contextlib
import os

#: The system's (libvirtd(8)); a session's are the user's own.
DIRECTORY = "/var/log/libvirt/qemu"


def remove(domain: str, directory: str = DIRECTORY) -> None:
    """Remove the logs of a domain that is no more, rotated ones too: ``NAME.log``, ``NAME.log.0``,
    ``NAME-fs0-virtiofsd.log``."""
    ours = (f"{domain}.log", f"{domain}-")
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name.startswith(ours):
                os.unlink(os.path.join(directory, name))
