"""Guests that stand still, though vmm did not pause them: suspended by somebody through libvirt, or
stopped by QEMU because it could not write what they wrote.

QEMU's default for a disk is ``werror=enospc``: on a full file system the guest is stopped and
loses nothing, where an error would break its file system.  libvirtd notes that in the file in which
it keeps a running domain's state; reading it is quicker than asking, and works while it is down.
"""

from __future__ import annotations

import re

from vmm.backends.libvirt.control import state_directories

_STATE = re.compile(rb"<domstatus state='paused' reason='(ioerror|user)'")
_WHY = {
    b"ioerror": "the guest stands still: its disk cannot be written on the host, which may be "
    "full; make room (vmm system df), then let it go on: vmm unpause",
    b"user": "the guest was suspended through libvirt; let it go on: vmm unpause",
}
#: Bytes; a warning of libvirt's comes first.
_HEAD = 2048


def reason(uri: str, domain: str) -> str:
    """Why the domain stands still, "" when it does not, or is not of this host's libvirt."""
    for directory in state_directories(uri):
        try:
            with open(f"{directory}/{domain}.xml", "rb") as file:
                if found := _STATE.search(file.read(_HEAD)):
                    return _WHY[found[1]]
        except OSError:
            continue
    return ""
